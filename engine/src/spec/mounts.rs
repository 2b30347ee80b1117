//! What a command of a build has mounted besides its root and its writable paths.

use serde::{Deserialize, Serialize};

use super::{LayerId, SpecError, check_path, refuse};

/// Most mounts of one command.
pub const MOUNTS_MAX: usize = 32;
/// Largest value of a secret, in bytes: what BuildKit takes.
pub const SECRET_BYTES_MAX: u64 = 500 * 1024;
/// Ids of a sandbox are below this.
const IDS_MAX: u32 = 0x1_0000;
/// Longest path in the content of a mount, in bytes.
const SOURCE_BYTES_MAX: usize = 4096;

/// Something that is mounted for a command of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepMount {
    /// Absolute path inside the sandbox. Where it is not there, it is there for as long as the command runs.
    pub target: String,
    /// What is there.
    pub content: MountContent,
    /// Whether it cannot be written to.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountContent {
    /// A part of layers. What is written to it is thrown away.
    Layers(LayersPart),
    /// A folder that outlives the command.
    Cache {
        /// Which.
        folder: CacheFolder,
        /// What lies under it, if anything does: its own files lie on top of that.
        below: Option<LayersPart>,
        /// Whom it belongs to when it is made.
        owner: FileOwner,
    },
    /// A file with the next so many bytes of the secrets that come with the command.
    Secret {
        /// How many.
        bytes: u64,
        /// Whom the file belongs to.
        owner: FileOwner,
    },
}

/// A file or a folder in what layers come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayersPart {
    /// The layers, lowest first. None come to an empty folder.
    pub layers: Vec<LayerId>,
    /// The path. It is resolved as if the layers were the root of a file system: no link leads out of them.
    pub source: String,
}

/// Mode and owner of something that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOwner {
    /// Permission bits.
    pub mode: u32,
    /// User id in the sandbox.
    pub uid: u32,
    /// Group id in the sandbox.
    pub gid: u32,
}

/// The name of a folder that outlives commands: 64 hexadecimal digits, a hyphen and a number, whatever its user calls it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheFolder(String);

impl CacheFolder {
    /// The folder with this number of those with this key.
    pub fn new(key: &LayerId, number: u16) -> CacheFolder {
        CacheFolder(format!("{}-{number}", key.hex()))
    }

    /// Takes what `name` gives, and nothing else, so that it can stand in a path.
    ///
    /// # Errors
    /// Any other text.
    pub fn parse(text: &str) -> Result<CacheFolder, SpecError> {
        let parsed = text.split_once('-').and_then(|(key, number)| {
            let key = LayerId::parse(key).ok().filter(|parsed| parsed.hex() == key)?;
            Some(CacheFolder::new(&key, number.parse().ok()?))
        });
        let problem = || SpecError { field: "cache", problem: format!("`{text}` is not the name of a cache's folder") };
        parsed.filter(|folder| folder.0 == text).ok_or_else(problem)
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CacheFolder {
    type Error = SpecError;
    fn try_from(text: String) -> Result<CacheFolder, SpecError> {
        CacheFolder::parse(&text)
    }
}

impl From<CacheFolder> for String {
    fn from(folder: CacheFolder) -> String {
        folder.0
    }
}

impl StepMount {
    /// Checks the mounts of one command.
    ///
    /// # Errors
    /// What cannot be mounted, and why.
    pub fn check_all(mounts: &[StepMount]) -> Result<(), SpecError> {
        if mounts.len() > MOUNTS_MAX {
            refuse("mounts", format!("{} mounts, at most {MOUNTS_MAX}", mounts.len()))?;
        }
        for (index, mount) in mounts.iter().enumerate() {
            mount.check()?;
            if mounts[..index].iter().any(|other| other.target == mount.target) {
                refuse("mounts.target", format!("`{}` is named twice", mount.target))?;
            }
        }
        Ok(())
    }

    /// Whether it is a file with a secret.
    pub fn is_secret(&self) -> bool {
        matches!(self.content, MountContent::Secret { .. })
    }

    fn check(&self) -> Result<(), SpecError> {
        check_path("mounts.target", &self.target)?;
        let top = self.target.trim_start_matches('/').split('/').next().unwrap_or("");
        if matches!(top, "" | "proc" | "sys" | "dev") {
            refuse("mounts.target", format!("nothing can be mounted at `{}`", self.target))?;
        }
        match &self.content {
            MountContent::Layers(part) => part.check(),
            MountContent::Cache { below, owner, .. } => {
                owner.check()?;
                below.as_ref().map_or(Ok(()), LayersPart::check)
            }
            MountContent::Secret { bytes, owner } => {
                if *bytes > SECRET_BYTES_MAX {
                    refuse("mounts", format!("a secret of {bytes} bytes, at most {SECRET_BYTES_MAX}"))?;
                }
                owner.check()
            }
        }
    }
}

impl LayersPart {
    fn check(&self) -> Result<(), SpecError> {
        if self.layers.len() > super::LAYERS_MAX {
            refuse("mounts", format!("{} layers, at most {}", self.layers.len(), super::LAYERS_MAX))?;
        }
        if self.source.contains('\0') || self.source.len() > SOURCE_BYTES_MAX {
            refuse("mounts.source", format!("a path has no NUL byte and at most {SOURCE_BYTES_MAX} bytes"))?;
        }
        Ok(())
    }
}

impl FileOwner {
    fn check(self) -> Result<(), SpecError> {
        if self.uid >= IDS_MAX || self.gid >= IDS_MAX {
            refuse("mounts", format!("ids are below {IDS_MAX}: {}:{} are not", self.uid, self.gid))?;
        }
        if self.mode > 0o7777 {
            refuse("mounts", format!("{:o} is no mode", self.mode))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(target: &str) -> StepMount {
        let owner = FileOwner { mode: 0o400, uid: 0, gid: 0 };
        StepMount { target: target.to_owned(), content: MountContent::Secret { bytes: 1, owner }, read_only: true }
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        StepMount::check_all(&[secret("/a"), secret("/a/b")]).expect("these are fine");
        let mut foreign = secret("/a");
        foreign.content = MountContent::Secret { bytes: 1, owner: FileOwner { mode: 0, uid: u32::MAX - 5, gid: 0 } };
        for mounts in [
            vec![secret("/a"), secret("/a")],
            vec![secret("/")],
            vec![secret("/proc/x")],
            vec![secret("/dev")],
            vec![secret("/a/../b")],
            vec![secret("a")],
            vec![foreign],
            (0..=MOUNTS_MAX).map(|number| secret(&format!("/{number}"))).collect(),
        ] {
            assert!(StepMount::check_all(&mounts).is_err(), "{mounts:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_cache_folder_is_named_by_nothing_but_a_digest_and_a_number(text in "[0-9a-f]{62,65}[-./][-0-9+./]{0,6}") {
            if let Ok(folder) = CacheFolder::parse(&text) {
                proptest::prop_assert!(!folder.name().contains(['/', '.', '+']));
                proptest::prop_assert_eq!(folder.name(), text);
            }
        }
    }
}
