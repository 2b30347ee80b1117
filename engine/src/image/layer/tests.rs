//! Layers unpacked for real: honest ones, whose files must come out exactly, and malicious ones, which must come to
//! nothing outside of their folder.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::sys::in_one_line;

/// Writes layers entry by entry. Files belong to whoever runs the test, so that no privilege is needed.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    fn header(flag: u8, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_mode(mode);
        header.set_uid(u64::from(rustix::process::getuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getgid().as_raw()));
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        header
    }

    /// Adds an entry with exactly this name, which `tar::Builder` would refuse to write.
    fn entry(mut self, flag: u8, name: &str, link: &str, mode: u32, content: &[u8]) -> Tar {
        let mut header = Self::header(flag, mode, content.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Tar {
        self.entry(b'0', name, "", 0o644, content.as_bytes())
    }

    fn folder(self, name: &str) -> Tar {
        self.entry(b'5', name, "", 0o755, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Tar {
        self.entry(b'2', name, target, 0o777, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Tar {
        self.entry(b'1', name, target, 0o644, b"")
    }

    fn records(mut self, records: &[(&str, &[u8])]) -> Tar {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A folder to unpack into, with a neighbour that no layer may touch.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        fs::write(folder.path().join("outside"), "untouched").unwrap();
        Place { folder }
    }

    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("root")
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root().join(name)
    }

    fn unpack(&self, archive: &[u8]) -> Result<Unpacked, UnpackError> {
        self.unpack_within(archive, UnpackLimits::default())
    }

    fn unpack_within(&self, archive: &[u8], limits: UnpackLimits) -> Result<Unpacked, UnpackError> {
        let root = File::open(self.root()).unwrap();
        unpack(archive, root.as_fd(), limits)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let metadata = fs::symlink_metadata(self.path(name)).unwrap();
        metadata.file_type().is_char_device() && metadata.rdev() == 0
    }

    fn is_opaque(&self, name: &str) -> bool {
        xattr(&self.path(name), "user.overlay.opaque").as_deref() == Some(b"y")
    }
}

/// Nothing outside of the root was made or changed, whatever the layer did.
impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut names: Vec<_> =
            fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["outside", "root"]);
        let outside = self.folder.path().join("outside");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
        assert_eq!(fs::metadata(&outside).unwrap().nlink(), 1);
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn unpacked(tar: Tar) -> Place {
    let place = Place::new();
    place.unpack(&tar.done()).unwrap();
    place
}

/// The layer is refused, and the sentence says so.
fn check_refused(tar: Tar, sentence: &str) {
    let error = in_one_line(&Place::new().unpack(&tar.done()).unwrap_err());
    assert!(error.contains(sentence), "{error}");
}

#[test]
fn a_layer_comes_out_as_it_was_packed() {
    let records: &[(&str, &[u8])] = &[("SCHILY.xattr.user.note", b"line\nbreak\0"), ("mtime", b"12.25")];
    let tar = Tar::new()
        .entry(b'5', "./", "", 0o750, b"")
        .entry(b'5', "bin/", "", 0o1777, b"")
        .records(records)
        .entry(b'0', "bin/tool", "", 0o4755, b"#!")
        .hard_link("bin/same", "bin/tool")
        .symlink("link", "../../anything")
        .entry(b'6', "pipe", "", 0o622, b"")
        .file("implied/folder/file", "x");
    let place = unpacked(tar);
    assert_eq!(fs::metadata(place.root()).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::metadata(place.path("bin")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(place.path("bin")).unwrap().mtime(), 1_000_000_000, "set after the files in it");
    let tool = fs::metadata(place.path("bin/tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.nlink(), tool.mtime(), tool.mtime_nsec()), (0o4755, 2, 12, 250_000_000));
    assert_eq!(xattr(&place.path("bin/tool"), "user.note").unwrap(), b"line\nbreak\0");
    assert_eq!(fs::metadata(place.path("bin/same")).unwrap().ino(), tool.ino());
    assert_eq!(fs::read_link(place.path("link")).unwrap(), Path::new("../../anything"));
    let pipe = fs::metadata(place.path("pipe")).unwrap();
    assert!(pipe.file_type().is_fifo() && pipe.mode() & 0o7777 == 0o622);
    assert_eq!(fs::metadata(place.path("implied/folder")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn the_diff_id_covers_every_byte_and_no_compression() {
    let mut tar = Tar::new().file("file", "x").done();
    tar.extend_from_slice(b"what stands behind the end mark");
    let expected = super::super::digest::Digest::of(&tar);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &tar).unwrap();
    for archive in [tar.clone(), gzip.finish().unwrap(), zstd::encode_all(&tar[..], 1).unwrap()] {
        let unpacked = Place::new().unpack(&archive).unwrap();
        assert_eq!(
            (unpacked.diff_id.as_str(), unpacked.tar_bytes, unpacked.entries),
            (expected.hex(), tar.len() as u64, 1)
        );
    }
}

#[test]
fn holes_stay_holes() {
    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"in the middle", 8 << 20).unwrap();
    file.set_len(16 << 20).unwrap();
    let output = Command::new("tar").args(["-S", "-c", "-C"]).arg(folder.path()).arg("holes").output().unwrap();
    let place = Place::new();
    place.unpack(&output.stdout).unwrap();
    let metadata = fs::metadata(place.path("holes")).unwrap();
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    assert!(fs::read(place.path("holes")).unwrap() == fs::read(folder.path().join("holes")).unwrap());
}

#[test]
fn paths_that_lead_out_are_refused() {
    check_refused(Tar::new().file("../outside", "x"), "contains `..`");
    check_refused(Tar::new().file("a/../../outside", "x"), "contains `..`");
    check_refused(Tar::new().folder("..").file("x", "y"), "contains `..`");
}

#[test]
fn an_absolute_path_stays_inside() {
    let place = unpacked(Tar::new().file("/etc/ampoule-test", "x").file("//top", "y"));
    assert_eq!(place.read("etc/ampoule-test"), "x");
    assert_eq!(place.read("top"), "y");
    assert!(!Path::new("/etc/ampoule-test").exists());
}

#[test]
fn nothing_is_written_through_a_symbolic_link() {
    check_refused(Tar::new().symlink("out", "..").file("out/outside", "x"), "`out` in its path is not a folder");
    check_refused(
        Tar::new().symlink("out", "/").file("out/tmp/ampoule-test", "x"),
        "`out` in its path is not a folder",
    );
    check_refused(Tar::new().folder("real").symlink("in", "real").file("in/file", "x"), "real path");
    check_refused(Tar::new().symlink("a", "..").symlink("a/b", "..").file("a/b/c", "x"), "`a` in its path");
    check_refused(Tar::new().symlink("out", "..").folder("out/new"), "`out` in its path is not a folder");
    check_refused(Tar::new().symlink("out", "..").entry(b'0', "out/.wh.outside", "", 0, b""), "`out` in its path");
}

#[test]
fn a_file_replaces_a_link_of_its_name_and_leaves_its_target() {
    let place = unpacked(Tar::new().symlink("link", "../outside").file("link", "new"));
    assert_eq!(place.read("link"), "new");
    assert!(fs::symlink_metadata(place.path("link")).unwrap().is_file());
}

#[test]
fn a_folder_replaces_a_link_to_a_folder() {
    let place = unpacked(Tar::new().symlink("lib", "..").folder("lib").file("lib/file", "x"));
    assert!(fs::symlink_metadata(place.path("lib")).unwrap().is_dir());
    assert_eq!(place.read("lib/file"), "x");
}

#[test]
fn a_hard_link_reaches_nothing_outside() {
    check_refused(Tar::new().hard_link("link", "../outside"), "contains `..`");
    check_refused(Tar::new().hard_link("link", "/etc/passwd"), "no file that this layer holds");
    check_refused(Tar::new().symlink("out", "..").hard_link("link", "out/outside"), "no file that this layer holds");
    check_refused(Tar::new().folder("folder").hard_link("link", "folder"), "no file that this layer holds");
    check_refused(Tar::new().hard_link("link", "."), "no file that this layer holds");
}

#[test]
fn a_hard_link_to_a_link_is_a_link() {
    let place = unpacked(Tar::new().symlink("out", "../outside").hard_link("link", "out").file("link", "replaced"));
    assert_eq!(place.read("link"), "replaced");
    assert!(fs::symlink_metadata(place.path("out")).unwrap().is_symlink());
}

#[test]
fn a_later_entry_takes_the_place_of_an_earlier_one() {
    let tar = Tar::new()
        .file("a", "1")
        .file("a", "22")
        .folder("b")
        .file("b/deep/file", "x")
        .file("b", "file")
        .file("c", "x")
        .folder("c");
    let place = unpacked(tar);
    assert_eq!((place.read("a"), place.read("b")), ("22".into(), "file".into()));
    assert!(place.path("c").is_dir());
}

#[test]
fn an_entry_beneath_a_file_is_refused() {
    check_refused(Tar::new().file("a", "x").file("a/b", "x"), "`a` in its path is not a folder");
}

#[test]
fn a_repeated_folder_keeps_its_files_and_takes_the_last_mode() {
    let place = unpacked(Tar::new().folder("a").file("a/file", "x").entry(b'5', "a", "", 0o700, b""));
    assert_eq!(place.read("a/file"), "x");
    assert_eq!(fs::metadata(place.path("a")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn device_nodes_are_left_out_and_counted() {
    let place = Place::new();
    let unpacked = place
        .unpack(&Tar::new().entry(b'3', "mem", "", 0o666, b"").entry(b'4', "disk", "", 0o666, b"").done())
        .unwrap();
    assert_eq!(unpacked.skipped.devices, 2);
    assert!(fs::read_dir(place.root()).unwrap().next().is_none());
}

#[test]
fn attributes_that_speak_to_the_host_are_left_out_and_counted() {
    let names =
        ["user.overlay.opaque", "user.overlay.redirect", "trusted.overlay.redirect", "security.selinux", "user.kept"];
    let records: Vec<_> = names.iter().map(|name| format!("SCHILY.xattr.{name}")).collect();
    let records: Vec<(&str, &[u8])> = records.iter().map(|name| (name.as_str(), &b"y"[..])).collect();
    let place = Place::new();
    let unpacked = place.unpack(&Tar::new().records(&records).folder("folder").done()).unwrap();
    assert_eq!(unpacked.skipped.xattrs, 4);
    assert_eq!(xattr(&place.path("folder"), "user.kept").unwrap(), b"y");
    assert!(!place.is_opaque("folder"));
}

#[test]
fn an_owner_that_no_sandbox_has_is_refused() {
    let records: &[(&str, &[u8])] = &[("uid", b"65536")];
    check_refused(Tar::new().records(records).file("f", "x"), "belongs to the id 65536");
}

#[test]
fn deletions_become_whiteouts() {
    let place = unpacked(Tar::new().file(".wh.gone", "").file("folder/.wh.gone", "").file("other/.wh..wh..opq", ""));
    assert!(place.is_whiteout("gone") && place.is_whiteout("folder/gone"));
    assert!(place.is_opaque("other") && !place.is_opaque("folder"));
    assert_eq!(fs::read_dir(place.path("other")).unwrap().count(), 0);
}

#[test]
fn marks_do_not_hide_what_their_own_layer_holds() {
    let before = Tar::new()
        .file(".wh.a", "")
        .file("a", "1")
        .file(".wh.b", "")
        .folder("b")
        .file("b/c", "2")
        .file("d/.wh..wh..opq", "")
        .file("d/e", "3");
    let after = Tar::new()
        .file("a", "1")
        .file(".wh.a", "")
        .folder("b")
        .file("b/c", "2")
        .file(".wh.b", "")
        .file("d/e", "3")
        .file("d/.wh..wh..opq", "");
    let implied =
        Tar::new().file("a", "1").file(".wh.b", "").file("b/c", "2").file("d/.wh..wh..opq", "").file("d/e", "3");
    for tar in [before, after, implied] {
        let place = unpacked(tar);
        assert_eq!((place.read("a"), place.read("b/c"), place.read("d/e")), ("1".into(), "2".into(), "3".into()));
        assert!(place.is_opaque("b"), "the folder of lower layers was deleted");
        assert!(place.is_opaque("d"));
    }
}

#[test]
fn marks_without_a_meaning_are_refused_or_passed_over() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.."] {
        check_refused(Tar::new().file(name, ""), "deleted file that has no name");
    }
    check_refused(Tar::new().file(".wh.a/b", ""), "a name that begins with `.wh.`");
    let place = unpacked(Tar::new().folder(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "x").file("a/.wh..wh.aufs", ""));
    assert_eq!(fs::read_dir(place.root()).unwrap().count(), 1);
}

#[test]
fn a_layer_that_hides_everything_below_it_says_so_on_its_root() {
    let place = unpacked(Tar::new().file(".wh..wh..opq", "").file("own", "x"));
    assert!(place.is_opaque("") && !place.path(".wh..wh..opq").exists());
    assert_eq!(place.read("own"), "x");
}

#[test]
fn attributes_that_the_kernel_gives_to_files_only_are_counted_on_links_and_pipes() {
    let records: &[(&str, &[u8])] = &[("SCHILY.xattr.user.note", b"x"), ("SCHILY.xattr.security.capability", b"\n")];
    let place = Place::new();
    let tar =
        Tar::new().records(records).symlink("link", "target").records(records).entry(b'6', "pipe", "", 0o600, b"");
    let unpacked = place.unpack(&tar.done()).unwrap();
    assert_eq!(unpacked.skipped, Skipped { devices: 0, xattrs: 4 });
    assert!(fs::symlink_metadata(place.path("link")).unwrap().is_symlink());
}

#[test]
fn a_worker_of_its_own_unpacks_exactly_what_anybody_does() {
    // The worker leaves out what a new file has by itself; these are the cases in which it has not.
    let acl: &[u8] =
        &[2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255];
    let records: &[(&str, &[u8])] = &[("SCHILY.xattr.system.posix_acl_default", acl)];
    let mut tar = Tar::new()
        .entry(b'0', "early", "", 0o666, b"x")
        .entry(b'5', "given", "", 0o2775, b"")
        .entry(b'0', "given/file", "", 0o644, b"y")
        .entry(b'5', "given/folder", "", 0o755, b"")
        .entry(b'0', "given/folder/setuid", "", 0o4711, b"z")
        .records(records)
        .entry(b'5', "listed", "", 0o777, b"")
        .entry(b'0', "listed/file", "", 0o777, b"x")
        .entry(b'5', "listed/folder", "", 0o777, b"")
        .file("swapped/in/file", "1")
        .file("swapped", "a file now")
        .file("again/file", "1")
        .symlink("again", "early")
        .folder("again")
        .file("again/file", "2");
    for owner in [0, 7, 0] {
        let mut header = Tar::header(b'0', 0o644, 1);
        header.set_uid(owner);
        header.set_gid(owner);
        tar.0.append_data(&mut header, format!("given/of {owner}"), &b"x"[..]).unwrap();
    }
    let archive = tar.done();
    let (plain, ahead) = (Place::new(), Place::new());
    let first = plain.unpack(&archive).unwrap();
    let root = File::open(ahead.root()).unwrap();
    let input = io::Cursor::new(archive);
    let second = unpack_ahead(input, Ahead::start().unwrap(), root.as_fd(), UnpackLimits::default()).unwrap();
    assert_eq!(first, second);
    let found = crate::image::tree::check(File::open(plain.root()).unwrap().as_fd(), root.as_fd()).unwrap();
    assert_eq!(found.samples, Vec::<String>::new());
}

#[test]
fn a_whiteout_is_no_target_for_a_hard_link() {
    check_refused(Tar::new().file(".wh.gone", "").hard_link("link", "gone"), "no file that this layer holds");
}

#[test]
fn bombs_are_stopped_by_bytes_ratio_entries_and_depth() {
    let within = |tar: Vec<u8>, limits| in_one_line(&Place::new().unpack_within(&tar, limits).unwrap_err());
    let bounds = Bounds { bytes_max: 1 << 20, ratio_max: 50, ratio_from_bytes: 1 << 19 };
    let limits = UnpackLimits { bounds, entries_max: 100 };
    let large = Tar::new().file("zeros", &"\0".repeat(4 << 20)).done();
    assert!(within(large.clone(), limits).contains("larger than 1048576 bytes"));
    assert!(within(zstd::encode_all(&large[..], 3).unwrap(), limits).contains("more than 50 times its size"));
    let many = (0..101).fold(Tar::new(), |tar, number| tar.file(&number.to_string(), ""));
    assert!(within(many.done(), limits).contains("limit of 100 entries"));
    let deep: &[(&str, &[u8])] = &[("path", &b"d/".repeat(600))];
    check_refused(Tar::new().records(deep).folder("x"), "512 names deep");
    let deep: &[(&str, &[u8])] = &[("path", &b"d/".repeat(500))];
    unpacked(Tar::new().records(deep).folder("x"));
}

#[test]
fn a_truncated_layer_names_the_entry() {
    let tar = Tar::new().file("first", "x").file("second", &"y".repeat(2000)).done();
    let error = in_one_line(&Place::new().unpack(&tar[..2000]).unwrap_err());
    assert!(error.contains("entry 2 (`second`)"), "{error}");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &tar).unwrap();
    let packed = gzip.finish().unwrap();
    let error = in_one_line(&Place::new().unpack(&packed[..packed.len() - 10]).unwrap_err());
    assert!(error.contains("ends in the middle"), "{error}");
}

/// What an overlay of `layers` (lowest first) shows: the output of `find`, run in a mount namespace of its own.
fn overlay_shows(layers: &[&Place], command: &str) -> String {
    let lower: Vec<_> = layers.iter().rev().map(|place| place.root().to_str().unwrap().to_owned()).collect();
    let target = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t overlay overlay -o ro,userxattr,lowerdir={} {target} && cd {target} && {command}",
        lower.join(":"),
        target = target.path().display(),
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "this test mounts and needs root: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_overlay_of_layers_shows_what_the_image_means() {
    let lower = unpacked(
        Tar::new()
            .file("gone", "1")
            .file("kept", "1")
            .file("folder/old", "1")
            .file("opaque/old", "1")
            .file("replaced/old", "1"),
    );
    let upper = unpacked(
        Tar::new()
            .file(".wh.gone", "")
            .file("folder/.wh.old", "")
            .file("folder/new", "2")
            .file("opaque/.wh..wh..opq", "")
            .file("opaque/new", "2")
            .file(".wh.replaced", "")
            .folder("replaced")
            .file("replaced/new", "2"),
    );
    let shown = overlay_shows(&[&lower, &upper], "find . -type f | sort | tr '\\n' ' '");
    assert_eq!(shown, "./folder/new ./kept ./opaque/new ./replaced/new ");
    let devices = overlay_shows(&[&lower, &upper], "find . -type c");
    assert_eq!(devices, "", "whiteouts are not seen");
}

/// The part of `a_layer_unpacks_in_a_user_namespace` that runs in there; that test starts it. By itself it has nothing
/// to unpack, and is no skipped test either.
#[test]
fn inside_the_user_namespace() {
    let Some(folder) = std::env::var_os("AMPOULE_TEST_LAYER") else { return };
    let root = File::open(Path::new(&folder).join("root")).unwrap();
    unpack(File::open(Path::new(&folder).join("layer.tar")).unwrap(), root.as_fd(), UnpackLimits::default()).unwrap();
}

/// The first id of the range that the user namespace of the test maps.
const FIRST_ID: u32 = 2_000_000;

/// Runs a test of this program as root of a user namespace that maps 0 to 65535 to the range from `FIRST_ID`.
fn run_in_user_namespace(test: &str, folder: &Path) {
    // Whoever enters must be able to read the program.
    let program = folder.join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut holder = Command::new("unshare").args(["--user", "sleep", "60"]).spawn().unwrap();
    let namespace = format!("/proc/{}/ns/user", holder.id());
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    while fs::read_link(&namespace).unwrap() == own {
        std::thread::yield_now();
    }
    for map in ["uid_map", "gid_map"] {
        let mapped = fs::write(format!("/proc/{}/{map}", holder.id()), format!("0 {FIRST_ID} 65536"));
        mapped.expect("this test maps ids and needs root");
    }
    let output = Command::new("nsenter")
        .args([&format!("--user={namespace}"), "--setuid=0", "--setgid=0", "--"])
        .arg(&program)
        .args(["--exact", test])
        .env("AMPOULE_TEST_LAYER", folder)
        .output();
    holder.kill().unwrap();
    holder.wait().unwrap();
    fs::remove_file(program).unwrap();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_layer_unpacks_in_a_user_namespace() {
    let capability = [&0x0200_0001_u32.to_le_bytes()[..], &(1_u32 << 13).to_le_bytes(), &[0; 12]].concat();
    let records: &[(&str, &[u8])] = &[
        ("uid", b"1000"),
        ("gid", b"65535"),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.a", b"b"),
    ];
    let owner: &[(&str, &[u8])] = &[("uid", b"0"), ("gid", b"42")];
    let tar = Tar::new()
        .records(records)
        .entry(b'0', "ping", "", 0o755, b"x")
        .records(owner)
        .entry(b'0', "setgid", "", 0o6711, b"x")
        .records(owner)
        .entry(b'5', "secret", "", 0o000, b"")
        .records(owner)
        .entry(b'0', "secret/file", "", 0o000, b"x")
        .records(owner)
        .entry(b'2', "link", "ping", 0o777, b"")
        .file(".wh.gone", "")
        .file("hides/.wh..wh..opq", "");
    let place = Place::new();
    let inner = tempfile::tempdir().unwrap();
    fs::write(inner.path().join("layer.tar"), tar.done()).unwrap();
    fs::create_dir(inner.path().join("root")).unwrap();
    std::os::unix::fs::chown(inner.path().join("root"), Some(FIRST_ID), Some(FIRST_ID)).expect("this test needs root");
    fs::set_permissions(inner.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    run_in_user_namespace("image::layer::tests::inside_the_user_namespace", inner.path());
    fs::remove_dir(place.root()).unwrap();
    fs::rename(inner.path().join("root"), place.root()).unwrap();
    let owner = |name: &str| {
        fs::symlink_metadata(place.path(name)).map(|file| (file.uid() - FIRST_ID, file.gid() - FIRST_ID)).unwrap()
    };
    assert_eq!((owner("ping"), owner("setgid"), owner("link")), ((1000, 65535), (0, 42), (0, 42)));
    assert_eq!(fs::metadata(place.path("setgid")).unwrap().mode() & 0o7777, 0o6711);
    assert_eq!(fs::metadata(place.path("secret")).unwrap().mode() & 0o7777, 0);
    assert!(place.path("secret/file").exists());
    // The kernel stores the capability for the root of that namespace only: revision 3 with its id at the end.
    let stored = xattr(&place.path("ping"), "security.capability").unwrap();
    assert_eq!((stored[3], &stored[20..]), (3, &FIRST_ID.to_le_bytes()[..]));
    assert!(place.is_whiteout("gone") && place.is_opaque("hides"));
}

#[test]
fn files_of_this_machine_come_out_as_gnu_tar_packed_them() {
    let output = Command::new("tar")
        .args(["--numeric-owner", "-c", "-C", "/", "usr/bin/tar", "etc/passwd", "etc/alternatives"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let place = Place::new();
    place.unpack(&output.stdout).unwrap();
    let difference = Command::new("tar")
        .args(["-d", "-C"])
        .arg(place.root())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut difference = difference.unwrap();
    std::io::Write::write_all(&mut difference.stdin.take().unwrap(), &output.stdout).unwrap();
    let compared = difference.wait_with_output().unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
}
