//! Why an archive does not become an image, and why a layer is refused, wherever it came from.

use std::io;
use std::path::PathBuf;

use super::StoreError;
use super::blobs::ArrivalError;
use crate::image::archive::{ArchiveError, PathError};
use crate::image::config::ConfigError;
use crate::image::digest::Digest;
use crate::image::manifest::ManifestError;
use crate::runtime::RuntimeError;
use crate::spec::LayerId;

/// Why an archive was not imported. The store is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive could not be read.
    #[error("could not read the archive")]
    Read(#[source] io::Error),
    /// The archive is damaged or passes a limit.
    #[error("could not read the archive")]
    Archive(#[from] ArchiveError),
    /// A path in the archive is refused.
    #[error("the archive is refused")]
    Path(#[source] PathError),
    /// The folder could not be read.
    #[error("could not read the image layout `{path}`")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds no image.
    #[error("{0}\nhint: give the tar of a root file system, what `docker save` writes, or an OCI image layout")]
    NotAnImage(&'static str),
    /// It is a root file system, and images were expected.
    #[error("the archive is a root file system and not an image\nhint: `ampoule image import` makes an image of it")]
    RootFileSystem,
    /// A file of the archive is missing or wrong.
    #[error("`{member}` of the archive is refused: {problem}")]
    Member {
        /// Its name.
        member: String,
        /// What is wrong.
        problem: String,
    },
    /// A manifest is refused.
    #[error("the manifest `{digest}` is refused")]
    Manifest {
        /// Its digest, or its name in the archive.
        digest: String,
        /// Why.
        source: ManifestError,
    },
    /// A config is refused.
    #[error("the image is refused")]
    Config(#[from] ConfigError),
    /// It has images, but none for this machine.
    #[error("there is no image for {wanted} in it, only for {found}\nhint: save the image for this platform")]
    Platform {
        /// What this machine runs.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// The name that was given for it cannot be used.
    #[error("{0}")]
    Name(String),
    /// A layer is refused, or could not be unpacked.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The parts do not fit together.
    #[error("the image is refused: {0}")]
    Mismatch(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a layer was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is not what it is called.
    #[error("layer {number} is refused: the registry sent {actual} for {expected}")]
    Corrupt {
        /// Which, from 1, lowest first.
        number: usize,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// It could not be unpacked.
    #[error("could not unpack layer {number} (`{blob}`)")]
    Unpack {
        /// Which, from 1, lowest first.
        number: usize,
        /// Its digest.
        blob: Digest,
        /// Why.
        source: RuntimeError,
    },
    /// It is not what the config says.
    #[error("layer {number} is refused: its content is {}, and the config of the image says {}", actual.hex(), expected.hex())]
    DiffId {
        /// Which, from 1, lowest first.
        number: usize,
        /// What the config says.
        expected: LayerId,
        /// What came out.
        actual: LayerId,
    },
}

impl ImportError {
    pub(super) fn member(member: &str, problem: impl Into<String>) -> ImportError {
        ImportError::Member { member: member.to_owned(), problem: problem.into() }
    }

    /// Something of the archive that could not be put aside.
    pub(super) fn arrival(member: &str, error: ArrivalError) -> ImportError {
        match error {
            ArrivalError::Source(source) => ImportError::Read(source),
            ArrivalError::Store(error) => ImportError::Store(error),
            error @ ArrivalError::TooLarge(_) => ImportError::member(member, error.to_string()),
        }
    }

    pub(super) fn manifest(digest: &Digest) -> impl FnOnce(ManifestError) -> ImportError {
        let digest = digest.to_string();
        move |source| ImportError::Manifest { digest, source }
    }
}
