//! Blocking access to a file for the control plane: reading a store before it serves, the tools.
//!
//! Owns nothing but the access to a file's bytes, and the aligned buffers that direct I/O needs
//! for it. Never knows the meaning of the bytes, and is never used while a queue is served: no
//! worker may block here. Tests also inject faults here.

use std::io;

use rustix::fs::{FallocateFlags, fallocate};

use super::durable::sync_file;
use super::files::FileInfo;

#[cfg(test)]
mod tests;

/// The largest piece that is read, written or zeroed at once, in bytes.
pub const SLICE: usize = 1 << 20;

/// A file, a block device or, in tests, memory. All offsets and lengths are in bytes.
pub trait Storage {
    /// What to call it in a sentence: its path.
    fn name(&self) -> String;

    /// Its length in bytes now.
    ///
    /// # Errors
    /// The system's error.
    fn len(&self) -> io::Result<u64>;

    /// Whether it holds no bytes.
    ///
    /// # Errors
    /// The system's error.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The system's error; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` to `offset`.
    ///
    /// # Errors
    /// The system's error.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes earlier writes durable.
    ///
    /// # Errors
    /// The system's error. Earlier writes may then be lost, whatever a later call returns.
    fn sync(&self) -> io::Result<()>;

    /// Writes `len` bytes from `offset` to where they are, as the system shows them: if it could not
    /// write them before, it does not try again by itself.
    ///
    /// # Errors
    /// The system's error.
    fn write_again(&self, offset: u64, len: u64) -> io::Result<()> {
        rewrite(
            offset,
            len,
            |bytes, at| self.read_at(bytes, at),
            |bytes, at| self.write_at(bytes, at),
        )
    }

    /// Makes `len` bytes from `offset` read as zeroes; not durable before [`Storage::sync`].
    ///
    /// # Errors
    /// The system's error.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        write_in_pieces(self, offset, len)
    }

    /// The first byte from `offset` on that may be other than zero, or the length if there is none;
    /// only a hint that lets a reader skip holes.
    ///
    /// # Errors
    /// The system's error.
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }
}

impl<S: Storage + ?Sized> Storage for &S {
    fn name(&self) -> String {
        (**self).name()
    }
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }
    fn write_again(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).write_again(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).write_zeroes(offset, len)
    }
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        (**self).next_data(offset)
    }
}

impl Storage for FileInfo {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> io::Result<u64> {
        self.current_len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if !self.direct || self.takes(buffer, offset) {
            return read_exact(self, buffer, offset);
        }
        let align = u64::from(self.align);
        let mut bounce = Aligned::new(self.align as usize);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let start = at / align * align;
            let skip = (at - start) as usize;
            let count = (buffer.len() - done).min(SLICE - skip);
            let hull = (skip + count).next_multiple_of(self.align as usize);
            let got = read_up_to(self, bounce.slice(hull), start)?;
            if got < skip + count {
                return Err(ends_early(at));
            }
            buffer[done..done + count].copy_from_slice(&bounce.slice(hull)[skip..skip + count]);
            done += count;
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        if !self.direct || self.takes(bytes, offset) {
            return self.file.write_all_at(bytes, offset);
        }
        let align = u64::from(self.align);
        if let Some(buffered) = &self.buffered
            && (!offset.is_multiple_of(align) || !(bytes.len() as u64).is_multiple_of(align))
        {
            return buffered.write_all_at(bytes, offset);
        }
        let mut bounce = Aligned::new(self.align as usize);
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let start = at / align * align;
            let skip = (at - start) as usize;
            let count = (bytes.len() - done).min(SLICE - skip);
            let hull = (skip + count).next_multiple_of(self.align as usize);
            let piece = bounce.slice(hull);
            if hull != count && read_up_to(self, piece, start)? < hull {
                return Err(ends_early(start));
            }
            piece[skip..skip + count].copy_from_slice(&bytes[done..done + count]);
            self.file.write_all_at(piece, start)?;
            done += count;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        sync_file(&self.file)
    }

    fn write_again(&self, offset: u64, len: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        // What was written through the page cache may be there alone, and direct reads pass by it.
        let Some(cached) = &self.buffered else {
            return rewrite(
                offset,
                len,
                |to, at| self.read_at(to, at),
                |of, at| self.write_at(of, at),
            );
        };
        rewrite(
            offset,
            len,
            |to, at| cached.read_exact_at(to, at),
            |of, at| cached.write_all_at(of, at),
        )
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let is_within = || {
            offset.checked_add(len).is_some_and(|end| self.current_len().is_ok_and(|l| end <= l))
        };
        let may_allocate = !self.block_device && is_within();
        let allocate = |flags| {
            let flags = flags | FallocateFlags::KEEP_SIZE;
            may_allocate && fallocate(&self.file, flags, offset, len).is_ok()
        };
        // Allocated space is kept if possible: others may fill the file system meanwhile.
        if allocate(FallocateFlags::ZERO_RANGE)
            || (len > SLICE as u64 && allocate(FallocateFlags::PUNCH_HOLE))
        {
            return Ok(());
        }
        let written = write_in_pieces(self, offset, len);
        if written.is_err() && allocate(FallocateFlags::PUNCH_HOLE) {
            return Ok(());
        }
        written
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        use rustix::fs::{SeekFrom, seek};
        if self.block_device {
            return Ok(offset);
        }
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) => Ok(at),
            Err(rustix::io::Errno::NXIO) => self.current_len(),
            Err(_) => Ok(offset),
        }
    }
}

impl FileInfo {
    /// Whether direct I/O takes these bytes as they lie.
    fn takes(&self, bytes: &[u8], offset: u64) -> bool {
        let align = self.align as usize;
        (bytes.as_ptr().addr() | bytes.len()).is_multiple_of(align)
            && offset.is_multiple_of(align as u64)
    }
}

/// Writes `len` zeroes from `offset` on.
fn write_in_pieces(storage: &(impl Storage + ?Sized), offset: u64, len: u64) -> io::Result<()> {
    let zeroes = vec![0; SLICE.min(len as usize)];
    let mut done = 0;
    while done < len {
        let count = (SLICE as u64).min(len - done);
        storage.write_at(&zeroes[..count as usize], offset + done)?;
        done += count;
    }
    Ok(())
}

/// Reads `len` bytes from `offset` on, and writes them there, in pieces.
fn rewrite(
    offset: u64,
    len: u64,
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
    write: impl Fn(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut bytes = vec![0; SLICE.min(len as usize)];
    let mut done = 0;
    while done < len {
        let piece = &mut bytes[..(SLICE as u64).min(len - done) as usize];
        read(piece, offset + done)?;
        write(piece, offset + done)?;
        done += piece.len() as u64;
    }
    Ok(())
}

fn ends_early(offset: u64) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file ends near byte {offset}"))
}

fn read_exact(info: &FileInfo, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    match read_up_to(info, buffer, offset)? {
        got if got == buffer.len() => Ok(()),
        got => Err(ends_early(offset + got as u64)),
    }
}

/// Fills `buffer` up to the end of the file.
fn read_up_to(info: &FileInfo, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
    let mut got = 0;
    while got < buffer.len() {
        match info.file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        // An unaligned count is the end of the file: there is nothing more to read.
        if info.direct && !got.is_multiple_of(info.align as usize) {
            break;
        }
    }
    Ok(got)
}

/// A buffer of one slice whose first byte is aligned.
#[derive(Debug)]
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(align: usize) -> Aligned {
        let bytes = vec![0; SLICE + align];
        let start = bytes.as_ptr().align_offset(align.max(1));
        Aligned { bytes, start }
    }

    fn slice(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}
