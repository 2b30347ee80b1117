//! The reader against archives that `tar::Builder` and GNU tar write, and against archives that nobody should write.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// An entry with its content, as tests compare it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Whole {
    head: Head,
    content: Vec<u8>,
}

fn read_all(archive: &[u8], limits: Limits) -> Result<Vec<Whole>, ArchiveError> {
    let mut reader = Reader::new(archive, limits);
    let mut entries = Vec::new();
    while let Some(mut entry) = reader.next_entry()? {
        let head = entry.head().clone();
        let mut content = Vec::new();
        if let Err(error) = entry.read_to_end(&mut content) {
            return Err(*error.into_inner().unwrap().downcast::<ArchiveError>().unwrap());
        }
        entries.push(Whole { head, content });
    }
    Ok(entries)
}

fn read(archive: &[u8]) -> Vec<Whole> {
    read_all(archive, Limits::default()).unwrap()
}

/// What the reader says against an archive.
fn complaint(archive: &[u8]) -> String {
    read_all(archive, Limits::default()).unwrap_err().to_string()
}

fn header(flag: u8, name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkflag = [flag];
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header
}

/// One member: header, data, padding.
fn member(flag: u8, name: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(flag, name, data.len() as u64).as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    bytes
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    member(b'x', "pax", &data)
}

#[test]
fn long_names_come_through_by_gnu_and_by_pax() {
    let long = format!("{}/file", ["directory"; 30].join("/"));
    let gnu = [member(b'L', "././@LongLink", format!("{long}\0").as_bytes()), member(b'0', "short", b"hi")].concat();
    let by_pax = [pax(&[("path", long.as_bytes())]), member(b'0', "short", b"hi")].concat();
    for archive in [gnu, by_pax] {
        let entries = read(&archive);
        assert_eq!(entries[0].head.path, long.as_bytes());
        assert_eq!(entries[0].content, b"hi");
    }
}

#[test]
fn long_link_targets_come_through() {
    let long = vec![b'x'; 300];
    let gnu = [member(b'K', "l", &[&long[..], b"\0"].concat()), member(b'2', "link", b"")].concat();
    let by_pax = [pax(&[("linkpath", &long)]), member(b'2', "link", b"")].concat();
    for archive in [gnu, by_pax] {
        assert_eq!(read(&archive)[0].head.kind, Kind::Symlink { target: long.clone() });
    }
}

#[test]
fn pax_records_replace_what_the_header_says() {
    let capability = b"\x01\0\0\x02\n \0\0\n";
    let records = pax(&[
        ("uid", b"3000000"),
        ("gid", b"7"),
        ("size", b"5"),
        ("mtime", b"12.5"),
        ("SCHILY.xattr.security.capability", capability),
    ]);
    // The header claims no content; the record says five bytes.
    let mut content = b"hello".to_vec();
    content.resize(BLOCK_BYTES, 0);
    let archive = [records, header(b'0', "f", 0).as_bytes().to_vec(), content, member(b'0', "next", b"")].concat();
    let entries = read(&archive);
    let head = &entries[0].head;
    assert_eq!((head.uid, head.gid, head.size), (3_000_000, 7, 5));
    assert_eq!(head.mtime, Timestamp { seconds: 12, nanos: 500_000_000 });
    assert_eq!(head.xattrs, [Xattr { name: b"security.capability".to_vec(), value: capability.to_vec() }]);
    assert_eq!(entries[0].content, b"hello");
    assert_eq!(entries[1].head.path, b"next");
    assert!(entries[1].head.xattrs.is_empty(), "records are for one entry only");
}

#[test]
fn a_size_record_does_not_change_extension_headers() {
    // Where a record's size was applied to the long name that follows, two readers saw two archives.
    let archive = [pax(&[("size", b"1536")]), member(b'L', "l", b"long\0"), member(b'0', "f", &[7; 1536])].concat();
    let entries = read(&archive);
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].head.path.as_slice(), entries[0].content.len()), (&b"long"[..], 1536));
}

#[test]
fn two_names_for_one_entry_are_refused() {
    let archive = [member(b'L', "l", b"one\0"), pax(&[("path", b"two")]), member(b'0', "f", b"")].concat();
    assert!(complaint(&archive).contains("two names"));
}

#[test]
fn a_huge_extension_header_is_refused_before_memory_is_taken() {
    let long_name = header(b'L', "l", 1 << 30).as_bytes().to_vec();
    assert!(complaint(&long_name).contains("65536 bytes in a long name"));
    let extended = header(b'x', "x", 1 << 30).as_bytes().to_vec();
    assert!(complaint(&extended).contains("1048576 bytes in an extended header"));
    let many = member(b'x', "x", b"").repeat(20);
    assert!(complaint(&many).contains("16 extension headers"));
}

#[test]
fn a_truncated_archive_names_the_entry() {
    let archive = [member(b'0', "first", b"1"), member(b'0', "second", &[9; 2000])].concat();
    for cut in [archive.len() - 1, archive.len() - 600, 1024 + 512 + 1] {
        let error = complaint(&archive[..cut]);
        assert!(error.contains("ends in the middle of entry 2 (`second`)"), "{cut}: {error}");
    }
    assert!(complaint(&archive[..1024 + 100]).contains("ends in the middle of entry 2"));
    assert!(complaint(&pax(&[("path", b"x")])).contains("ends in the middle of entry 1"));
    // Between two entries, and with half an end mark, it is whole.
    assert_eq!(read(&archive[..1024]).len(), 1);
    assert_eq!(read(&[&archive[..], &[0; 512]].concat()).len(), 2);
}

#[test]
fn a_wrong_checksum_is_refused() {
    let mut archive = member(b'0', "f", b"x");
    archive[0] = b'g';
    assert!(complaint(&archive).contains("checksum"));
    assert!(complaint(&[b'x'; 4096]).contains("checksum"));
}

#[test]
fn what_follows_the_end_mark_is_no_entry_but_is_drained() {
    let archive = [member(b'0', "f", b"x"), vec![0; 1024], member(b'0', "hidden", b"x")].concat();
    assert_eq!(read(&archive).len(), 1);
    let mut reader = Reader::new(&archive[..], Limits::default());
    while reader.next_entry().unwrap().is_some() {}
    assert_eq!(reader.entries(), 1);
    assert_eq!(reader.drain().unwrap(), b"");
}

#[test]
fn zeros_in_the_middle_are_refused() {
    let archive = [member(b'0', "f", b"x"), vec![0; 512], member(b'0', "hidden", b"x")].concat();
    assert!(complaint(&archive).contains("block of zeros"));
}

#[test]
fn limits_on_entries_and_bytes_hold() {
    let archive = [member(b'0', "a", b"x"), member(b'0', "b", b"x")].concat();
    let entries = Limits { entries_max: 1, ..Limits::default() };
    assert!(read_all(&archive, entries).unwrap_err().to_string().contains("entry 2 (`b`)"));
    let bytes = Limits { bytes_max: 1500, ..Limits::default() };
    assert!(read_all(&archive, bytes).unwrap_err().to_string().contains("limit of 1500 bytes"));
}

#[test]
fn a_hole_counts_like_the_zeros_that_it_stands_for() {
    let records =
        [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9223372036854775807")];
    let records: Vec<_> = records.iter().map(|&(key, value)| (key, value.as_bytes())).collect();
    let mut map = b"0\n".to_vec();
    map.resize(BLOCK_BYTES, 0);
    let archive = [pax(&records), member(b'0', "f", &map)].concat();
    assert!(complaint(&archive).contains("limit of 17179869184 bytes"));
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let check = |map: &str, size: &str, stored: &[u8]| {
        let records =
            [("GNU.sparse.major", "0"), ("GNU.sparse.minor", "1"), ("GNU.sparse.map", map), ("GNU.sparse.size", size)];
        let records: Vec<_> = records.iter().map(|&(key, value)| (key, value.as_bytes())).collect();
        read_all(&[pax(&records), member(b'0', "f", stored)].concat(), Limits::default())
    };
    let whole = check("2,3,10,2", "20", b"abcde").unwrap();
    assert_eq!(whole[0].content, b"\0\0abc\0\0\0\0\0de\0\0\0\0\0\0\0\0");
    for (map, size) in [("2,3,4,2", "20"), ("2,3,19,2", "20"), ("2,4,10,2", "20"), ("2", "20"), ("2,3,10,2", "11")] {
        assert!(check(map, size, b"abcde").is_err(), "{map}");
    }
}

#[test]
fn an_entry_of_an_unknown_type_is_refused() {
    for flag in [b'D', b'M', b'V', b'Z', 0xff] {
        assert!(complaint(&member(flag, "f", b"")).contains("its type"), "{flag}");
    }
}

#[test]
fn an_old_folder_is_a_name_with_a_slash() {
    assert_eq!(read(&member(0, "folder/", b""))[0].head.kind, Kind::Directory);
    assert_eq!(read(&member(0, "file", b""))[0].head.kind, Kind::File);
}

#[test]
fn paths_are_taken_apart_or_refused() {
    let parts =
        |path: &str| split_path(path.as_bytes()).map(|parts| parts.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>());
    assert_eq!(parts("./a//b/./c/").unwrap(), [b"a", b"b", b"c"]);
    assert_eq!(parts("/etc").unwrap(), [b"etc"]);
    assert_eq!(parts("./").unwrap(), [b""; 0]);
    assert_eq!(parts("..a/b..").unwrap().len(), 2);
    for path in ["..", "a/../b", "/..", "a/..", "x\0y"] {
        assert!(parts(path).is_err(), "{path:?}");
    }
    assert!(parts(&"a/".repeat(600)).is_err());
    assert!(parts(&"a".repeat(256)).is_err());
    assert!(parts(&"abc/".repeat(1024)).is_err());
}

/// GNU tar in all the ways in which it writes holes and long names.
#[test]
fn archives_of_gnu_tar_are_read_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let long = "n".repeat(120);
    std::fs::create_dir_all(folder.path().join(&long)).unwrap();
    let holes = folder.path().join(&long).join("holes");
    let file = std::fs::File::create(&holes).unwrap();
    for part in 0..9_u64 {
        // More than the four runs that fit in one header.
        std::os::unix::fs::FileExt::write_all_at(&file, format!("part {part}").as_bytes(), part << 20).unwrap();
    }
    file.set_len(16 << 20).unwrap();
    let expected = std::fs::read(&holes).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
    ] {
        let output = std::process::Command::new("tar")
            .args(format)
            .args(["-S", "-C"])
            .arg(folder.path())
            .args(["-c", "."])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.len() < 1 << 20, "tar stored the holes");
        let entries = read(&output.stdout);
        let entry = entries.iter().find(|entry| entry.head.path.ends_with(b"holes")).unwrap();
        assert_eq!(entry.head.path, format!("./{long}/holes").as_bytes(), "{format:?}");
        assert_eq!(entry.head.size, 16 << 20);
        assert!(entry.content == expected, "{format:?}");
    }
}

fn any_name() -> impl Strategy<Value = String> {
    proptest::collection::vec("[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,40}", 1..8).prop_map(|parts| parts.join("/"))
}

prop_compose! {
    fn any_entry()(
        content in proptest::collection::vec(any::<u8>(), 0..2000),
        mode in 0_u32..0o10000,
        uid in any::<u32>(),
        gid in any::<u32>(),
        mtime in 0_u64..0x1_0000_0000_0000,
        link in proptest::option::of(any_name()),
    ) -> (tar::Header, Vec<u8>, Option<String>) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_uid(u64::from(uid));
        header.set_gid(u64::from(gid));
        header.set_mtime(mtime);
        header.set_entry_type(if link.is_some() { tar::EntryType::Symlink } else { tar::EntryType::Regular });
        header.set_size(if link.is_some() { 0 } else { content.len() as u64 });
        (header, content, link)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_builder_writes_is_what_the_reader_reads(
        entries in proptest::collection::btree_map(any_name(), any_entry(), 0..8),
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, (header, content, link)) in &entries {
            let mut header = header.clone();
            match link {
                Some(link) => builder.append_link(&mut header, name, link).unwrap(),
                None => builder.append_data(&mut header, name, &content[..]).unwrap(),
            }
        }
        let archive = builder.into_inner().unwrap();
        let read: BTreeMap<_, _> = read(&archive).into_iter().map(|whole| (whole.head.path.clone(), whole)).collect();
        prop_assert_eq!(read.len(), entries.len());
        for (name, (header, content, link)) in entries {
            let whole = &read[name.as_bytes()];
            prop_assert_eq!(u64::from(whole.head.uid), header.uid().unwrap());
            prop_assert_eq!(u64::from(whole.head.gid), header.gid().unwrap());
            prop_assert_eq!(whole.head.mode, header.mode().unwrap());
            prop_assert_eq!(whole.head.mtime.seconds as u64, header.mtime().unwrap());
            match link {
                Some(link) => prop_assert_eq!(&whole.head.kind, &Kind::Symlink { target: link.into_bytes() }),
                None => prop_assert_eq!(&whole.content, &content),
            }
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        mut archive in proptest::collection::vec(any::<u8>(), 0..4096),
        flags in proptest::collection::vec(proptest::sample::select(&b"0125LKxgS6"[..]), 8),
        sizes in proptest::collection::vec(0_u64..1500, 8),
    ) {
        for (block, (flag, size)) in archive.chunks_exact_mut(BLOCK_BYTES).zip(flags.iter().zip(sizes)) {
            let mut forged = header(*flag, "name", size);
            forged.as_mut_bytes()[345..500].copy_from_slice(&block[345..500]);
            forged.set_cksum();
            block.copy_from_slice(forged.as_bytes());
        }
        let _ = read_all(&archive, Limits::default());
    }
}
