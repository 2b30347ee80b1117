//! Trees made here, exported, unpacked again and compared.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::image::layer::{self, UnpackLimits};

/// A tree with something of everything.
fn tree() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("bin/deep/er")).unwrap();
    fs::write(root.join("bin/tool"), "#!").unwrap();
    fs::set_permissions(root.join("bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("bin/tool"), root.join("again")).unwrap();
    symlink("../nowhere", root.join("bin/link")).unwrap();
    fs::hard_link(root.join("bin/link"), root.join("link again")).unwrap();
    let long = format!("bin/deep/{}", "n".repeat(255));
    fs::write(root.join(&long), vec![7; 70_000]).unwrap();
    symlink("t".repeat(3000), root.join("far")).unwrap();
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"no text \xff\n");
    fs::write(root.join(odd), "").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let holes = File::create(root.join("holes")).unwrap();
    holes.write_all_at(b"in the middle", 4 << 20).unwrap();
    holes.set_len(9 << 20).unwrap();
    File::create(root.join("all hole")).unwrap().set_len(1 << 20).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.join("bin/tool"), "user.note", b"line\nbreak\0", flags).unwrap();
    rustix::fs::setxattr(root.join("bin"), "user.empty", b"", flags).unwrap();
    rustix::fs::setxattr(root.join("bin"), "user.overlay.opaque", b"y", flags).unwrap();
    folder
}

fn exported(root: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    let written = export(File::open(root).unwrap().as_fd(), &mut tar).unwrap();
    assert_eq!(written.bytes, tar.len() as u64);
    tar
}

fn unpacked(tar: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = File::open(folder.path()).unwrap();
    layer::unpack(tar, root.as_fd(), UnpackLimits::default()).unwrap();
    folder
}

fn changes(before: &Path, after: &Path) -> Vec<Change> {
    let mut bytes = Vec::new();
    let (before, after) = (File::open(before).unwrap(), File::open(after).unwrap());
    write_changes(before.as_fd(), after.as_fd(), &mut bytes).unwrap();
    let mut reader = Changes::new(&bytes[..]);
    std::iter::from_fn(|| reader.next_change().unwrap()).collect()
}

fn paths(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| String::from_utf8_lossy(&change.path).into_owned()).collect()
}

#[test]
fn what_is_exported_unpacks_to_the_same_tree() {
    let tree = tree();
    let tar = exported(tree.path());
    let again = unpacked(&tar);
    assert_eq!(changes(tree.path(), again.path()), []);
    assert_eq!(fs::metadata(again.path().join("again")).unwrap().nlink(), 2);
    assert_eq!(fs::symlink_metadata(again.path().join("link again")).unwrap().nlink(), 2);
    assert!(fs::metadata(again.path().join("holes")).unwrap().blocks() < 1024);
    assert_eq!(fs::metadata(again.path().join("all hole")).unwrap().blocks(), 0);
    let (old, new) =
        (fs::metadata(tree.path().join("holes")).unwrap(), fs::metadata(again.path().join("holes")).unwrap());
    assert_eq!((old.mtime(), old.mtime_nsec()), (new.mtime(), new.mtime_nsec()));
    assert_eq!(exported(again.path()), tar, "the same tree is the same tar");
}

#[test]
fn gnu_tar_reads_an_export() {
    let tree = tree();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tar"), exported(tree.path())).unwrap();
    fs::create_dir(folder.path().join("out")).unwrap();
    let tar = Command::new("tar").args(["-xpf", "tar", "--xattrs", "-C", "out"]).current_dir(folder.path()).output();
    let tar = tar.unwrap();
    assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    assert_eq!(changes(tree.path(), &folder.path().join("out")), []);
}

#[test]
fn python_reads_an_export() {
    let tree = tree();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tar"), exported(tree.path())).unwrap();
    let script = "import tarfile; tar = tarfile.open('tar'); print(len(tar.getnames()), tar.getmember('holes').size)";
    let python = Command::new("python3").args(["-c", script]).current_dir(folder.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&python.stdout), format!("14 {}\n", 9 << 20), "{python:?}");
}

#[test]
fn each_kind_of_change_is_told_once_and_nothing_else_is() {
    let (before, after) = (tree(), tree());
    let root = after.path();
    fs::write(root.join("bin/tool"), "!#").unwrap();
    fs::remove_file(root.join("far")).unwrap();
    fs::create_dir_all(root.join("new/inner")).unwrap();
    fs::remove_file(root.join("pipe")).unwrap();
    fs::create_dir(root.join("pipe")).unwrap();
    fs::set_permissions(root.join("bin/deep"), fs::Permissions::from_mode(0o700)).unwrap();
    let found = changes(before.path(), after.path());
    assert_eq!(paths(&found), ["again", "bin/deep", "bin/tool", "far", "new", "new/inner", "pipe"]);
    assert!(found[3].after.is_none() && found[4].before.is_none());
    let (old, new) = (found[2].before.as_ref().unwrap(), found[2].after.as_ref().unwrap());
    assert_eq!(old.size, new.size);
    assert_ne!(old.sha256, new.sha256);
    let (old, new) = (found[6].before.as_ref().unwrap(), found[6].after.as_ref().unwrap());
    assert_eq!((old.kind, new.kind), (NodeKind::Pipe, NodeKind::Folder));
}

#[test]
fn a_layer_that_was_tampered_with_is_told_file_by_file() {
    let (expected, found) = (tree(), tree());
    let root = found.path();
    fs::write(root.join("bin/tool"), "##").unwrap();
    fs::set_permissions(root.join("bin/deep"), fs::Permissions::from_mode(0o777)).unwrap();
    rustix::fs::removexattr(root.join("bin"), "user.overlay.opaque").unwrap();
    fs::write(root.join("planted"), "x").unwrap();
    fs::remove_file(root.join("holes")).unwrap();
    let (expected, found) = (File::open(expected.path()).unwrap(), File::open(found.path()).unwrap());
    let found = check(expected.as_fd(), found.as_fd()).unwrap();
    assert_eq!(found.differences, 6);
    for sentence in [
        "`again`: it has another content",
        "`bin`: its extended attributes are others",
        "`bin/deep`: its mode is 777, not 755",
        "`planted` does not belong there",
        "`holes` is missing",
    ] {
        assert!(found.samples.iter().any(|sample| sample == sentence), "{sentence}: {:?}", found.samples);
    }
}

#[test]
fn changes_that_make_no_sense_are_refused_in_bounded_memory() {
    for bytes in [&[255, 255, 255, 255, 1][..], &[4, 0, 0, 0, 1], &[1, 0], &[2, 0, 0, 0, 255, 255]] {
        assert!(Changes::new(bytes).next_change().is_err(), "{bytes:?}");
    }
    assert!(Changes::new(&[][..]).next_change().unwrap().is_none());
}
