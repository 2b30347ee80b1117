//! SHA-256 digests: the names of content, and readers that compute them in passing.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// Hexadecimal digits of a digest.
const HEX_DIGITS: usize = 64;

/// The SHA-256 of some bytes. Written `sha256:HEX`; no other algorithm is accepted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest\nhint: a digest is `sha256:` with 64 hexadecimal digits in lower case")]
pub struct DigestError(String);

impl Digest {
    /// Computes the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Takes `sha256:HEX`.
    ///
    /// # Errors
    /// Any other text.
    pub fn parse(text: &str) -> Result<Digest, DigestError> {
        match text.strip_prefix("sha256:") {
            Some(hex) if is_hex(hex) => Ok(Digest(hex.to_owned())),
            _ => Err(DigestError(super::archive::printable(text.as_bytes()))),
        }
    }

    /// Takes the bare 64 digits; `None` for anything else.
    pub fn from_hex(hex: &str) -> Option<Digest> {
        is_hex(hex).then(|| Digest(hex.to_owned()))
    }

    /// The 64 hexadecimal digits; safe as the name of a file.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

fn is_hex(text: &str) -> bool {
    text.len() == HEX_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Digest, DigestError> {
        Digest::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// Computes a digest piece by piece.
#[derive(Clone, Default)]
pub struct Hasher {
    state: sha2::Sha256,
    bytes: u64,
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// How many bytes were added.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digest of all that was added.
    pub fn finish(self) -> Digest {
        let hex = self.state.finalize().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
        Digest(hex.map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])).collect())
    }
}

/// A reader that computes the digest of what passes.
pub struct Hashing<R> {
    input: R,
    hasher: Hasher,
}

impl<R: Read> Hashing<R> {
    /// Reads from `input`.
    pub fn new(input: R) -> Hashing<R> {
        Hashing { input, hasher: Hasher::default() }
    }

    /// What has passed so far.
    pub fn into_hasher(self) -> Hasher {
        self.hasher
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_one_that_everybody_computes() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(Digest::parse(empty).unwrap(), Digest::of(b""));
        let mut reader = Hashing::new(&b"abc"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        let hasher = reader.into_hasher();
        assert_eq!(hasher.bytes(), 3);
        assert_eq!(hasher.finish().hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn only_a_plain_sha256_is_a_digest() {
        let hex = "a".repeat(64);
        for text in [
            hex.clone(),
            format!("sha512:{hex}"),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{hex}0"),
            "sha256:../../x".into(),
        ] {
            assert!(Digest::parse(&text).is_err(), "{text}");
        }
    }
}
