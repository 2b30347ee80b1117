//! Files and folders of this machine as a tar that is sent while it is made.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ampoule_client::client::Content;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;

use super::amount::Transfer;

/// Bytes of one piece of the tar.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that may wait to be sent.
const PIECES_MAX: usize = 8;

/// A tar with each source at its target, for a job. A target that ends with a slash is the folder to put it into.
pub(super) fn files(transfers: Vec<Transfer>) -> Content {
    made_by(move |builder| transfers.iter().try_for_each(|transfer| append(builder, transfer)))
}

/// A tar with everything in a folder, for an image: an OCI layout or a root file system.
pub(super) fn folder(path: PathBuf) -> Content {
    made_by(move |builder| builder.append_dir_all("", &path).map_err(|error| about(&path, &error)))
}

type Builder = tar::Builder<BufWriter<Pieces>>;

/// Runs `fill` on a thread of its own; its error breaks the upload off, so that half a tar is never taken for one.
fn made_by(fill: impl FnOnce(&mut Builder) -> io::Result<()> + Send + 'static) -> Content {
    let (pieces, received) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut builder = tar::Builder::new(BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces.clone())));
        builder.follow_symlinks(false);
        builder.preserve_absolute(true);
        let made = fill(&mut builder).and_then(|()| builder.into_inner()).and_then(|mut writer| writer.flush());
        if let Err(error) = made {
            // When nobody receives any more the upload has failed for another reason, which is told.
            let _ = pieces.blocking_send(Err(error));
        }
    });
    Content::Reader { reader: Box::new(StreamReader::new(ReceiverStream::new(received))), length: None }
}

fn append(builder: &mut Builder, transfer: &Transfer) -> io::Result<()> {
    let source = Path::new(&transfer.source);
    let failed = |error: io::Error| about(source, &error);
    let target = target_of(source, &transfer.target);
    if fs::metadata(source).map_err(failed)?.is_dir() {
        return builder.append_dir_all(target, source).map_err(failed);
    }
    let mut file = File::open(source).map_err(failed)?;
    builder.append_file(target, &mut file).map_err(failed)
}

/// The name in the tar: the target, with the source's own name below it when it ends with a slash.
fn target_of(source: &Path, target: &str) -> PathBuf {
    match (target.ends_with('/'), source.file_name()) {
        (true, Some(name)) => Path::new(target).join(name),
        _ => PathBuf::from(target),
    }
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("could not read {}: {error}", path.display()))
}

/// The sending end of a tar under way.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        self.0.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn received(content: Content) -> io::Result<Vec<u8>> {
        let Content::Reader { mut reader, .. } = content else { panic!("a bundle is streamed") };
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    fn names(tar: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().expect("entries");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").path().expect("a path").display().to_string()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn files_and_folders_arrive_under_their_targets() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("src")).expect("a folder");
        fs::write(folder.path().join("src/one"), vec![1; 3 * PIECE_BYTES]).expect("a file");
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("src/link")).expect("a link");
        let source = |name: &str| folder.path().join(name).display().to_string();
        let transfers = vec![
            Transfer { source: source("src"), target: "/work/tree".to_owned() },
            Transfer { source: source("src/one"), target: "copy".to_owned() },
            Transfer { source: source("src/one"), target: "in/".to_owned() },
        ];
        let tar = received(files(transfers)).await.expect("a tar");
        let expected = ["/work/tree", "/work/tree/link", "/work/tree/one", "copy", "in/one"];
        let found: Vec<String> = names(&tar).into_iter().map(|name| name.trim_end_matches('/').to_owned()).collect();
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn a_source_that_is_not_there_breaks_the_upload_off() {
        let transfers = vec![Transfer { source: "/no/such/file".to_owned(), target: "/work/x".to_owned() }];
        let error = received(files(transfers)).await.expect_err("no tar");
        assert!(error.to_string().contains("/no/such/file"), "{error}");
    }
}
