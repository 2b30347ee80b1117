//! The images that the tests run: root file systems made here, as tar archives.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use tar::{Builder, EntryType, Header};

/// The program that looks around inside; see `tests/inside/inside.c`.
pub const INSIDE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inside"));

/// A tar under construction.
pub struct Archive {
    builder: Builder<Vec<u8>>,
}

impl Default for Archive {
    fn default() -> Archive {
        Archive { builder: Builder::new(Vec::new()) }
    }
}

impl Archive {
    /// Adds a file.
    pub fn file(mut self, path: &str, mode: u32, owner: u64, content: &[u8]) -> Archive {
        let mut header = header(EntryType::Regular, mode, owner);
        header.set_size(content.len() as u64);
        self.builder.append_data(&mut header, path, content).expect("writing to memory");
        self
    }

    /// Adds a folder.
    pub fn folder(mut self, path: &str, mode: u32, owner: u64) -> Archive {
        let mut header = header(EntryType::Directory, mode, owner);
        self.builder.append_data(&mut header, path, &[][..]).expect("writing to memory");
        self
    }

    /// Adds a symbolic link.
    pub fn link(mut self, path: &str, target: &str) -> Archive {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.builder.append_link(&mut header, path, target).expect("writing to memory");
        self
    }

    /// The bytes of the whole archive.
    pub fn finish(self) -> Vec<u8> {
        self.builder.into_inner().expect("writing to memory")
    }
}

fn header(kind: EntryType, mode: u32, owner: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    header
}

/// A small but whole root: busybox with all its applets, users, and our program to look around, once plain and
/// once set-user-id.
///
/// # Panics
/// When the machine has no static `/bin/busybox`.
pub fn busybox() -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed by `make setup`");
    let list = Command::new("/bin/busybox").arg("--list").output().expect("busybox can be run");
    let mut archive = Archive::default();
    for folder in ["bin", "etc", "dev", "proc", "sys", "usr", "usr/bin", "var", "root", "work"] {
        archive = archive.folder(folder, 0o755, 0);
    }
    archive = archive
        .folder("tmp", 0o1777, 0)
        .folder("home", 0o755, 0)
        .folder("home/worker", 0o700, 1000)
        .file("home/worker/private", 0o600, 1000, b"of the worker\n")
        .file("root/private", 0o600, 0, b"of root\n")
        .file("bin/busybox", 0o755, 0, &busybox)
        .file("bin/inside", 0o755, 0, INSIDE)
        .file("bin/inside-setuid", 0o4755, 0, INSIDE)
        .file("bin/inside-setgid", 0o2755, 0, INSIDE)
        .file("bin/not-executable", 0o644, 0, b"text\n")
        .file("etc/passwd", 0o644, 0, PASSWD)
        .file("etc/group", 0o644, 0, b"root:x:0:\nworker:x:1000:\nstaff:x:50:worker\nnogroup:x:65534:\n")
        .file("etc/hostname", 0o644, 0, b"image\n");
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|applet| *applet != "busybox") {
        archive = archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive.finish()
}

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
    worker:x:1000:1000:worker:/home/worker:/bin/sh\n\
    nobody:x:65534:65534:nobody:/:/bin/sh\n";

/// A real Debian with python3 and pytest, as made by mmdebstrap once; `tests/debian-root.sh` makes it.
///
/// # Panics
/// When it was not made.
pub fn debian() -> fs::File {
    let path = crate::test_data().join("debian.tar");
    fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}\nhint: make setup", path.display()))
}

/// A tar of everything below a folder, with names relative to it.
///
/// # Panics
/// When the folder cannot be read.
pub fn of_folder(folder: &Path) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder.append_dir_all(".", folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    builder.into_inner().expect("writing to memory").to_vec()
}

/// Bytes as gzip would pack them, by the program itself.
///
/// # Panics
/// When gzip is missing.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip")
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("gzip is on every Debian");
    let mut input = child.stdin.take().expect("it is piped");
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).expect("gzip reads"));
        child.wait_with_output().expect("gzip ends").stdout
    })
}
