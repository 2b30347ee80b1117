//! Platforms: `linux/amd64`, `linux/arm64/v8`, `arm64`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest part of a platform.
const PART_BYTES_MAX: usize = 32;
/// Architectures as machines call them, and as images do.
const ARCHITECTURES: [(&str, &str); 6] = [
    ("x86_64", "amd64"),
    ("x86-64", "amd64"),
    ("aarch64", "arm64"),
    ("armhf", "arm"),
    ("armel", "arm"),
    ("i386", "386"),
];

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    /// The system, as in `linux`.
    pub os: String,
    /// The architecture, as in `amd64`.
    pub architecture: String,
    /// The variant of the architecture, as in `v7`.
    pub variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no platform\nhint: as in linux/amd64 or linux/arm64")]
pub struct PlatformError(String);

impl Platform {
    /// That of this program.
    pub fn own() -> Platform {
        let architecture = ARCHITECTURES.iter().find(|(machine, _)| *machine == std::env::consts::ARCH);
        let architecture = architecture.map_or(std::env::consts::ARCH, |(_, name)| name);
        Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Reads `os/architecture[/variant]`, or one of the first two alone.
    ///
    /// # Errors
    /// Any other text.
    pub fn parse(text: &str) -> Result<Platform, PlatformError> {
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        let is_part = |part: &&str| {
            !part.is_empty()
                && part.len() <= PART_BYTES_MAX
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        if !parts.iter().all(is_part) {
            return Err(PlatformError(text.chars().take(80).collect()));
        }
        let own = Platform::own();
        let known = ["linux", "windows", "darwin", "freebsd"];
        match parts.as_slice() {
            [os] if known.contains(os) => Ok(Platform { os: (*os).to_owned(), ..own }),
            [architecture] => Ok(normalized(&own.os, architecture, None)),
            [os, architecture] => Ok(normalized(os, architecture, None)),
            [os, architecture, variant] => Ok(normalized(os, architecture, Some(variant))),
            _ => Err(PlatformError(text.chars().take(80).collect())),
        }
    }

    /// Whether an image of the other platform runs where one of this does.
    pub fn agrees(&self, other: &Platform) -> bool {
        self.os == other.os && self.architecture == other.architecture
    }
}

fn normalized(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
    let name =
        ARCHITECTURES.iter().find(|(machine, _)| *machine == architecture).map_or(architecture, |(_, name)| name);
    // The first version of 64-bit arm is what everybody means, and `arm` alone is its seventh.
    let variant = match (name, variant) {
        ("arm64", Some("v8" | "8")) => None,
        ("arm", None) => Some("v7"),
        (_, variant) => variant,
    };
    Platform { os: os.to_owned(), architecture: name.to_owned(), variant: variant.map(str::to_owned) }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(formatter, "/{variant}"))
    }
}

impl TryFrom<String> for Platform {
    type Error = PlatformError;
    fn try_from(text: String) -> Result<Platform, PlatformError> {
        Platform::parse(&text)
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> String {
        platform.to_string()
    }
}
