//! What goes into a sandbox besides the command: standard input and files. Small ones are bytes in memory and in the
//! database, large ones are files in the job's folder.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use ampoule_engine::runtime::{Input, Stdin};
use bytes::Bytes;
use rustix::fs::{MemfdFlags, memfd_create};

use super::store::{INLINE_BYTES_MAX, Inputs};

/// Standard input and files of a job.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    /// Standard input; `None` is nothing.
    pub stdin: Option<Content>,
    /// A tar of files.
    pub files: Option<Content>,
}

/// Bytes, somewhere.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In an uploaded file, which may be removed once it has another name in the job's folder.
    Upload(PathBuf),
    /// In a file of the job's folder.
    File(PathBuf),
}

/// Why a payload could not be stored or given to a sandbox.
#[derive(Debug, thiserror::Error)]
#[error("could not {action}")]
pub struct PayloadError {
    action: &'static str,
    source: io::Error,
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> PayloadError {
    move |source| PayloadError { action, source }
}

impl Payload {
    /// Puts what is large into the job's folder.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub async fn settle(self, folder: &Path) -> Result<Payload, PayloadError> {
        let is_large = |content: &Option<Content>| match content {
            Some(Content::Bytes(bytes)) => bytes.len() > INLINE_BYTES_MAX,
            Some(Content::Upload(_)) => true,
            Some(Content::File(_)) | None => false,
        };
        if !is_large(&self.stdin) && !is_large(&self.files) {
            return Ok(self);
        }
        let folder = folder.to_owned();
        let settled = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&folder).map_err(failed("make the job's folder"))?;
            Ok(Payload {
                stdin: settle(self.stdin, folder.join("stdin"))?,
                files: settle(self.files, folder.join("files.tar"))?,
            })
        });
        settled.await.map_err(|panicked| failed("store the job's input")(io::Error::other(panicked)))?
    }

    /// What goes into the database.
    pub fn inline(&self) -> Inputs {
        let bytes = |content: &Option<Content>| match content {
            Some(Content::Bytes(bytes)) => Some(bytes.clone()),
            _ => None,
        };
        Inputs { stdin: bytes(&self.stdin), files: bytes(&self.files) }
    }

    /// The payload of a job that waited: from the database, and from the files that its folder has.
    pub fn from_store(inputs: Inputs, folder: &Path) -> Payload {
        let content = |inline: Option<Bytes>, name: &str| {
            let file = folder.join(name);
            inline.map(Content::Bytes).or_else(|| file.exists().then_some(Content::File(file)))
        };
        Payload { stdin: content(inputs.stdin, "stdin"), files: content(inputs.files, "files.tar") }
    }

    /// Opens everything for a sandbox.
    ///
    /// # Errors
    /// A file cannot be opened, or there is no memory for one.
    pub fn open(&self) -> Result<Input, PayloadError> {
        let stdin = match &self.stdin {
            None => Stdin::Empty,
            Some(content) => Stdin::File(open(content).map_err(failed("open the job's standard input"))?),
        };
        let files = self.files.as_ref().map(open).transpose().map_err(failed("open the job's files"))?;
        Ok(Input { stdin, files })
    }
}

fn settle(content: Option<Content>, file: PathBuf) -> Result<Option<Content>, PayloadError> {
    match content {
        Some(Content::Bytes(bytes)) if bytes.len() > INLINE_BYTES_MAX => {
            std::fs::write(&file, &bytes).map_err(failed("store the job's input"))?;
            Ok(Some(Content::File(file)))
        }
        Some(Content::Upload(upload)) => {
            std::fs::hard_link(upload, &file).map_err(failed("take the upload"))?;
            Ok(Some(Content::File(file)))
        }
        content => Ok(content),
    }
}

fn open(content: &Content) -> io::Result<File> {
    match content {
        Content::File(path) | Content::Upload(path) => File::open(path),
        Content::Bytes(bytes) => {
            let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC)?);
            file.write_all(bytes)?;
            file.rewind()?;
            Ok(file)
        }
    }
}
