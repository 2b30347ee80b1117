//! The files of a request as the tar that a sandbox unpacks.

use super::admit::File;

const BLOCK: usize = 512;
/// Longest name that stands in a header; a longer one gets an entry of its own before the file.
const NAME_BYTES_MAX: usize = 100;

/// Writes files as a tar with absolute names.
pub fn tar(files: &[File]) -> Vec<u8> {
    let content: usize = files.iter().map(|file| file.content.len()).sum();
    let mut tar = Vec::with_capacity(content + (files.len() + 1) * 3 * BLOCK);
    for file in files {
        let name = file.path.as_bytes();
        if name.len() > NAME_BYTES_MAX {
            let long = [name, b"\0"].concat();
            append(&mut tar, b"././@LongLink", tar::EntryType::GNULongName, 0o644, &long);
        }
        append(&mut tar, &name[..name.len().min(NAME_BYTES_MAX)], tar::EntryType::Regular, file.mode, &file.content);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

fn append(tar: &mut Vec<u8>, name: &[u8], kind: tar::EntryType, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    // `set_path` refuses absolute names, which is what these are.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::io::Read;

    #[test]
    fn a_tar_of_files_reads_back_with_names_of_any_length() {
        let long = format!("/work/{}/name.txt", "folder/".repeat(40));
        let file = |path: &str, mode, content: &'static [u8]| File {
            path: path.to_owned(),
            mode,
            content: Bytes::from_static(content),
        };
        let files =
            [file("/work/a", 0o755, b"content of a"), file(&long, 0o600, b""), file("/tmp/b", 0o644, &[7; 513])];
        let bytes = tar(&files);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let read: Vec<(Vec<u8>, u32, Vec<u8>)> = archive
            .entries()
            .expect("reads")
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("content");
                (entry.path_bytes().into_owned(), entry.header().mode().expect("a mode"), content)
            })
            .collect();
        let expected: Vec<_> =
            files.iter().map(|file| (file.path.clone().into_bytes(), file.mode, file.content.to_vec())).collect();
        assert_eq!(read, expected);
    }
}
