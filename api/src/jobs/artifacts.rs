//! Takes the artifacts of a job out of the tar that its sandbox writes. The tar is hostile: names are only words in a
//! list, the files are numbered, and everything is counted again here.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ampoule_client::types::Artifact;
use ampoule_engine::image::archive::{ArchiveError, Kind, Limits, Reader};
use ampoule_engine::image::digest::Hasher;
use ampoule_engine::spec::Artifacts;

/// Bytes that headers and paddings may take on top of the content, for each file.
const OVERHEAD_BYTES: u64 = 16 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

/// Why artifacts could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The tar is broken; what came before is kept.
    #[error("the artifacts could not be read")]
    Archive(#[from] ArchiveError),
    /// They cannot be stored.
    #[error("could not store artifacts in {folder}")]
    Store {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The folder of a job's artifacts in its own folder; each file's name is its place in the list.
pub fn folder(job: &Path) -> PathBuf {
    job.join("artifacts")
}

/// Reads all artifacts from `tar` and stores them below `job`. What was stored before an error is told as well.
/// Blocks.
pub fn receive(tar: impl Read, wanted: &Artifacts, job: &Path) -> (Vec<Artifact>, Result<(), ArtifactError>) {
    let mut artifacts = Vec::new();
    let outcome = receive_into(tar, wanted, &folder(job), &mut artifacts);
    (artifacts, outcome)
}

fn receive_into(
    tar: impl Read,
    wanted: &Artifacts,
    folder: &Path,
    artifacts: &mut Vec<Artifact>,
) -> Result<(), ArtifactError> {
    let overhead = wanted.files_max.saturating_add(2).saturating_mul(OVERHEAD_BYTES);
    let bytes_max = wanted.total_bytes_max.saturating_add(overhead);
    let mut reader = Reader::new(tar, Limits { entries_max: wanted.files_max, bytes_max });
    let mut left = wanted.total_bytes_max;
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Some(mut entry) = reader.next_entry()? {
        let head = entry.head();
        let size_bytes = head.size;
        if head.kind != Kind::File {
            continue;
        }
        let path = format!("/{}", String::from_utf8_lossy(&head.path).trim_start_matches('/'));
        if size_bytes > wanted.file_bytes_max || size_bytes > left {
            let left_out = Some("it is larger than artifacts may be".to_owned());
            artifacts.push(Artifact { path, size_bytes, sha256: None, left_out });
            continue;
        }
        left -= size_bytes;
        let stored = store(&mut entry, folder, artifacts.len(), &mut buffer);
        let sha256 = stored.map_err(|source| ArtifactError::Store { folder: folder.to_owned(), source })?;
        artifacts.push(Artifact { path, size_bytes, sha256: Some(sha256), left_out: None });
    }
    Ok(())
}

fn store(content: &mut impl Read, folder: &Path, number: usize, buffer: &mut [u8]) -> io::Result<String> {
    std::fs::create_dir_all(folder)?;
    let mut file = File::create(folder.join(number.to_string()))?;
    let mut hash = Hasher::default();
    loop {
        let length = content.read(buffer)?;
        if length == 0 {
            return Ok(hash.finish().hex().to_owned());
        }
        hash.update(&buffer[..length]);
        file.write_all(&buffer[..length])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, usize)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, length) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(*length as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, io::repeat(b'x').take(*length as u64)).expect("appends");
        }
        tar.into_inner().expect("finishes")
    }

    #[test]
    fn artifacts_are_numbered_files_and_what_is_too_large_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let wanted =
            Artifacts { globs: vec!["/work/**".to_owned()], file_bytes_max: 100, total_bytes_max: 150, files_max: 10 };
        let tar = archive(&[("work/a.txt", 100), ("work/b.txt", 101), ("work/c.txt", 51), ("work/d.txt", 50)]);
        let (artifacts, outcome) = receive(tar.as_slice(), &wanted, folder.path());
        outcome.expect("reads");
        let kept: Vec<_> = artifacts.iter().map(|file| (file.path.as_str(), file.left_out.is_none())).collect();
        assert_eq!(
            kept,
            [("/work/a.txt", true), ("/work/b.txt", false), ("/work/c.txt", false), ("/work/d.txt", true)]
        );
        let content = std::fs::read(folder.path().join("artifacts/3")).expect("a file");
        assert_eq!(content, [b'x'; 50]);
        assert_eq!(artifacts[3].sha256.as_deref(), Some(ampoule_engine::image::digest::Digest::of(&content).hex()));
    }

    #[test]
    fn a_broken_tar_keeps_what_came_before_and_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let wanted =
            Artifacts { globs: vec!["/work/**".to_owned()], file_bytes_max: 1000, total_bytes_max: 2000, files_max: 2 };
        let tar = archive(&[("work/a", 10), ("work/b", 10), ("work/c", 10)]);
        let (artifacts, outcome) = receive(tar.as_slice(), &wanted, folder.path());
        assert_eq!(artifacts.len(), 2);
        assert!(outcome.is_err(), "the third file is one too many");
        let (artifacts, outcome) = receive(&tar[..700], &wanted, folder.path());
        assert!(artifacts.len() <= 1 && outcome.is_err());
    }
}
