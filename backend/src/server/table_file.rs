//! The lines of a table as people give them: themselves, or `@FILE` for those of a file.
//!
//! Owns what of such a file is a line. Never knows what one says.

use std::path::{Path, PathBuf};

use snapblk_store::lines::split_lines;

/// The lines; `@FILE` stands for those of a file that are neither empty nor begin with `#`.
///
/// # Errors
/// Which file cannot be read, and why.
pub fn table_lines(given: &[String]) -> Result<Vec<String>, (PathBuf, std::io::Error)> {
    let mut lines = Vec::new();
    for line in given {
        match line.strip_prefix('@') {
            None => lines.push(line.clone()),
            Some(path) => {
                let path = Path::new(path);
                let text = std::fs::read_to_string(path).map_err(|e| (path.to_owned(), e))?;
                let useful = |line: &&str| !line.is_empty() && !line.starts_with('#');
                let all = split_lines(&text).map(str::trim_start);
                lines.extend(all.filter(useful).map(str::to_owned));
            }
        }
    }
    Ok(lines)
}
