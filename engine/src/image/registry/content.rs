//! Fetching: manifests by name or digest, and blobs piece by piece, taken up again where a connection broke.

use bytes::Bytes;
use reqwest::header::{self, HeaderValue};
use reqwest::{Method, StatusCode};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Repository;
use super::failure::RegistryError;
use super::transport::{Answer, Call, Line, TRIES_MAX, backoff, next_chunk};
use crate::image::digest::Digest;
use crate::image::manifest::{Content, MANIFEST_BYTES_MAX};

/// What a manifest may be; the last ones only so that a refusal can say what it is.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1";
/// How often a blob may break off although each piece brings more of it.
const CUTS_MAX: u32 = 100;

/// A manifest as a registry sent it.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its bytes, which are what the digest is of.
    pub bytes: Bytes,
    /// The digest, computed here.
    pub digest: Digest,
    /// The media type that the registry gives it.
    pub media_type: String,
}

/// Why a piece of a blob ended early.
enum Broken {
    /// The rest can be asked for.
    Cut(String),
    Lasting(RegistryError),
}

impl From<RegistryError> for Broken {
    fn from(error: RegistryError) -> Broken {
        Broken::Lasting(error)
    }
}

/// How far a blob has come.
struct Progress {
    received: u64,
    /// What the place that is being asked calls this version of it.
    tag: Option<HeaderValue>,
}

impl Repository {
    /// Fetches a manifest by tag or digest; a digest is verified.
    ///
    /// # Errors
    /// It is not there, is too long, or is not what its digest says.
    pub async fn manifest(&self, name: &str) -> Result<Fetched, RegistryError> {
        let mut failure = None;
        for line in &self.lines {
            match line.manifest(&self.path, name).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) if error.may_do_better_elsewhere() => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(no_line))
    }

    /// Fetches a blob of at most `bytes_max` into memory and verifies it.
    ///
    /// # Errors
    /// It is not there, is too long, or is not what its digest says.
    pub async fn small_blob(&self, content: &Content, bytes_max: u64) -> Result<Bytes, RegistryError> {
        let mut failure = None;
        for line in &self.lines {
            match line.small_blob(&self.path, content, bytes_max).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.may_do_better_elsewhere() => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(no_line))
    }

    /// Sends a blob, exactly as many bytes as it has, to `sink`, and tells after each piece how many there were. The
    /// digest is the sink's affair.
    ///
    /// # Errors
    /// It is not there, has another length, or did not come in spite of all tries. A sink that is closed ends it.
    pub async fn blob(
        &self,
        content: &Content,
        sink: &mpsc::Sender<Bytes>,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<(), RegistryError> {
        let mut received = 0;
        let mut failure = None;
        for line in &self.lines {
            match line.blob(&self.path, content, &mut received, sink, told).await {
                Ok(()) => return Ok(()),
                Err(error) if error.may_do_better_elsewhere() => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(no_line))
    }
}

/// A repository always has a line, that to the registry itself.
pub(super) fn no_line() -> RegistryError {
    RegistryError::Setup("there is no way to the registry".to_owned())
}

impl Line {
    async fn manifest(&self, path: &str, name: &str) -> Result<Fetched, RegistryError> {
        let url = self.url(&format!("v2/{path}/manifests/{name}"))?;
        let call = Call::new(Method::GET, url, format!("manifest `{name}` in `{path}`"))
            .header(header::ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
        let (headers, bytes) = self.read(&call, MANIFEST_BYTES_MAX).await?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let digest = Digest::of(&bytes);
        let stated = Digest::parse(name).ok().or_else(|| Digest::parse(text("docker-content-digest")).ok());
        if let Some(expected) = stated.filter(|stated| *stated != digest) {
            return Err(RegistryError::Corrupt { registry: self.site.name.clone(), expected, actual: digest });
        }
        Ok(Fetched { bytes, digest, media_type: text("content-type").to_owned() })
    }

    async fn small_blob(&self, path: &str, content: &Content, bytes_max: u64) -> Result<Bytes, RegistryError> {
        let what = format!("blob `{}` in `{path}`", content.digest);
        if content.size > bytes_max {
            return Err(RegistryError::TooLarge { registry: self.site.name.clone(), what, bytes_max });
        }
        let call = Call::new(Method::GET, self.url(&format!("v2/{path}/blobs/{}", content.digest))?, what);
        let (_, bytes) = self.read(&call, content.size).await?;
        let actual = Digest::of(&bytes);
        if actual != content.digest {
            let expected = content.digest.clone();
            return Err(RegistryError::Corrupt { registry: self.site.name.clone(), expected, actual });
        }
        Ok(bytes)
    }

    async fn blob(
        &self,
        path: &str,
        content: &Content,
        received: &mut u64,
        sink: &mpsc::Sender<Bytes>,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<(), RegistryError> {
        let (mut idle, mut cuts) = (0, 0);
        let mut progress = Progress { received: *received, tag: None };
        while progress.received < content.size {
            let before = progress.received;
            let piece = self.piece(path, content, &mut progress, sink, told).await;
            *received = progress.received;
            let problem = match piece {
                Ok(()) if progress.received == content.size => return Ok(()),
                Ok(()) => format!("it ended after {} of {} bytes", progress.received, content.size),
                Err(Broken::Cut(problem)) => problem,
                Err(Broken::Lasting(error)) => return Err(error),
            };
            cuts += 1;
            idle = if progress.received > before { 1 } else { idle + 1 };
            if idle >= TRIES_MAX || cuts >= CUTS_MAX {
                let about = format!("`{}` does not come: {problem}", content.digest);
                return Err(self.unreachable(about));
            }
            sleep(backoff(idle)).await;
        }
        Ok(())
    }

    /// Asks for what is missing, and takes what comes.
    async fn piece(
        &self,
        path: &str,
        content: &Content,
        progress: &mut Progress,
        sink: &mpsc::Sender<Bytes>,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Broken> {
        let url = self.url(&format!("v2/{path}/blobs/{}", content.digest))?;
        let mut call = Call::new(Method::GET, url, format!("blob `{}` in `{path}`", content.digest));
        if progress.received > 0 {
            let range = HeaderValue::try_from(format!("bytes={}-", progress.received));
            call = call.header(header::RANGE, range.map_err(|_| Broken::Cut("no range".to_owned()))?);
            if let Some(tag) = &progress.tag {
                call = call.header(header::IF_RANGE, tag.clone());
            }
        }
        let mut answer = self.expect(&call, &[StatusCode::OK, StatusCode::PARTIAL_CONTENT]).await?;
        // A weak tag promises nothing about bytes.
        let tag = answer.response.headers().get(header::ETAG).cloned();
        progress.tag = tag.filter(|tag| !tag.as_bytes().starts_with(b"W/"));
        let mut skipped = self.skip(&answer, content, progress.received)?;
        while let Some(mut chunk) = next_chunk(&mut answer.response).await.map_err(Broken::Cut)? {
            let known = skipped.min(chunk.len() as u64);
            skipped -= known;
            let chunk = chunk.split_off(usize::try_from(known).unwrap_or(usize::MAX));
            if chunk.is_empty() {
                continue;
            }
            let length = chunk.len() as u64;
            if length > content.size - progress.received {
                return Err(self.too_long(content).into());
            }
            if sink.send(chunk).await.is_err() {
                return Err(RegistryError::Sink(std::io::ErrorKind::BrokenPipe.into()).into());
            }
            progress.received += length;
            told(progress.received);
        }
        Ok(())
    }

    /// How many bytes at the start of an answer are known already: all of them when the registry does not give ranges,
    /// and starts over. What comes is compared by the digest of the whole in the end.
    fn skip(&self, answer: &Answer, content: &Content, received: u64) -> Result<u64, RegistryError> {
        let length = answer.response.content_length();
        let wrong = |said: u64| {
            self.protocol(format!(
                "it says that `{}` has {said} bytes, and the manifest {}",
                content.digest, content.size
            ))
        };
        if answer.status() == StatusCode::OK {
            return match length.filter(|length| *length != content.size) {
                Some(said) => Err(wrong(said)),
                None => Ok(received),
            };
        }
        let range = answer.header("content-range").and_then(content_range);
        match range {
            Some((start, total)) if start == received && total.is_none_or(|total| total == content.size) => Ok(0),
            Some((_, Some(total))) if total != content.size => Err(wrong(total)),
            _ => Err(self.protocol(format!("it sends another part of `{}` than it was asked for", content.digest))),
        }
    }

    fn too_long(&self, content: &Content) -> RegistryError {
        let what = format!("blob `{}`", content.digest);
        RegistryError::TooLarge { registry: self.site.name.clone(), what, bytes_max: content.size }
    }
}

/// Start and total of `bytes 100-199/200`, or of `bytes 100-199/*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
    let total = if total.trim() == "*" { None } else { Some(total.trim().parse().ok()?) };
    (start <= end).then_some((start, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        assert_eq!(content_range("bytes 100-199/200"), Some((100, Some(200))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0, None)));
        for wrong in ["", "bytes */200", "bytes 2-1/3", "items 0-1/2", "bytes 0-1", "bytes 0-1/x"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
