//! Arguments of `snapblk serve`: `--config FILE.toml`, and files that are not disks.

use crate::common::*;

const SECTORS: u64 = 2048;

#[test]
fn a_file_without_a_sector_is_no_disk() {
    let scratch = scratch();
    for (name, content) in [("empty", &b""[..]), ("text", b"hello\n")] {
        let file = scratch.file(name, content).unwrap();
        let said = does_not_start(&plain(&scratch, &file));
        assert!(said.contains(&format!("it has {} bytes; a disk has", content.len())), "{said}");
    }
}

#[test]
fn disks_come_from_a_file_and_the_command_line_wins() {
    let scratch = scratch();
    let golden = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    scratch.file("data.raw", &stamped(0, SECTORS, 2)).unwrap();
    let (root, data) = (scratch.socket("root.sock"), scratch.socket("data.sock"));
    let text = format!(
        "state = 'vm.state'\n\n\
         [[disk]]\nname = 'root'\nblk-file = 'golden.raw'\noverlay = 'root.cow'\n\
         socket-path = '{}'\nnum-queues = 4\n\n\
         [[disk]]\nname = 'data'\ntable = ['0 {SECTORS} linear ./data.raw 0', '{SECTORS} 8 zero']\n\
         socket-path = '{}'\n",
        word(&root),
        word(&data),
    );
    let file = scratch.file("vm.toml", text.as_bytes()).unwrap();
    let command = monitor_only(&scratch).arg("--config").arg(&file);
    let command = command.arg("--name").arg("root").arg("--num-queues").arg("1");
    for generation in [1, 3] {
        let mut world = World::start(&command);
        let mut disk = disk(&root);
        assert_eq!(disk.info().queues, 1);
        assert_same("root", &disk.read_all().unwrap(), &stamped(0, SECTORS, generation));
        disk.write(0, &stamped(0, SECTORS, 3)).unwrap();
        let mut joined = stamped(0, SECTORS, 2);
        joined.extend([0; 8 * 512]);
        assert_same("data", &crate::common::disk(&data).read_all().unwrap(), &joined);
        assert_eq!(world.tables().len(), 2);
        drop(disk);
        world.stop();
        assert!(scratch.path("vm.state").exists());
    }
    assert_eq!(std::fs::read(golden).unwrap(), stamped(0, SECTORS, 1));

    std::fs::write(&file, text.replace("overlay", "overlays")).unwrap();
    let said = does_not_start(&command);
    assert!(said.contains("vm.toml: line 6: unknown field `overlays`"), "{said}");
    let said = does_not_start(&monitor_only(&scratch).arg("--config").arg("none.toml"));
    assert!(said.contains("cannot read none.toml"), "{said}");
}
