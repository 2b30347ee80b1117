//! Pushing: what a registry has is left out, what a neighbouring repository has is taken over, the rest is uploaded at
//! once or in pieces, and taken up again where it broke.

use std::io;

use bytes::Bytes;
use reqwest::header::{self, HeaderValue};
use reqwest::{Body, Method, StatusCode, Url};
use tokio::time::sleep;

use super::Repository;
use super::content::no_line;
use super::failure::RegistryError;
use super::transport::{Answer, Call, CallBody, Line, TRIES_MAX, backoff};
use crate::image::digest::Digest;
use crate::image::manifest::Content;

/// How often an upload may break off although each piece brings more of it.
const CUTS_MAX: u32 = 100;
/// The smallest piece of an upload that a registry can make us send; what it asks for beyond is bounded as well.
const CHUNK_BYTES_MIN: u64 = 64 * 1024;
/// The largest piece that a registry may insist on.
const CHUNK_BYTES_MAX: u64 = 1 << 30;

/// Where the bytes of a blob come from.
pub trait BlobSource: Send + Sync {
    /// A body of the blob's bytes from `start`, so many of them.
    ///
    /// # Errors
    /// They cannot be read.
    fn body(&self, start: u64, length: u64) -> io::Result<Body>;
}

/// How a blob came to be where it was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was there already.
    Existed,
    /// The registry took it over from another repository.
    Mounted,
    /// Its bytes were sent.
    Uploaded,
}

/// An upload that was begun.
struct Session {
    url: Url,
    chunk_bytes: Option<u64>,
}

/// How a registry answered the wish for an upload.
enum Begun {
    Mounted,
    Session(Session),
}

impl Repository {
    /// The line to the registry itself.
    fn line(&self) -> Result<&Line, RegistryError> {
        self.lines.last().ok_or_else(no_line)
    }

    /// Whether a manifest with this tag or digest is there.
    ///
    /// # Errors
    /// The registry does not say.
    pub async fn has_manifest(&self, name: &str) -> Result<bool, RegistryError> {
        let line = self.line()?;
        line.has(&format!("v2/{}/manifests/{name}", self.path)).await
    }

    /// Brings a blob to the registry, from one of the repositories `from` of the same registry if they have it.
    ///
    /// # Errors
    /// The registry refuses, or the upload does not end in spite of all tries.
    pub async fn send_blob(
        &self,
        content: &Content,
        from: &[String],
        source: &dyn BlobSource,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<Sent, RegistryError> {
        let line = self.line()?;
        if line.has(&format!("v2/{}/blobs/{}", self.path, content.digest)).await? {
            return Ok(Sent::Existed);
        }
        for other in from.iter().filter(|other| **other != self.path) {
            let query = [("mount", content.digest.to_string()), ("from", other.clone())];
            match line.begin(&self.path, &query).await {
                Ok(Begun::Mounted) => return Ok(Sent::Mounted),
                // It began an upload instead, which is as good as our own.
                Ok(Begun::Session(session)) => {
                    return line.upload(session, self, content, source, told).await.map(|()| Sent::Uploaded);
                }
                // Not to be let at the other repository is no reason not to upload.
                Err(RegistryError::Denied { .. } | RegistryError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let session = match line.begin(&self.path, &[]).await? {
            Begun::Session(session) => session,
            Begun::Mounted => return Ok(Sent::Existed),
        };
        line.upload(session, self, content, source, told).await.map(|()| Sent::Uploaded)
    }

    /// Stores a manifest under a tag or its digest, exactly these bytes. Returns whether the registry keeps track of
    /// what the manifest is about, which it says when the manifest names a subject.
    ///
    /// # Errors
    /// The registry refuses it.
    pub async fn put_manifest(&self, name: &str, bytes: &Bytes, media_type: &str) -> Result<bool, RegistryError> {
        let line = self.line()?;
        let url = line.url(&format!("v2/{}/manifests/{name}", self.path))?;
        let kind = HeaderValue::try_from(media_type).map_err(|_| line.protocol("the manifest has no proper type"))?;
        let call = Call::new(Method::PUT, url, format!("place for the manifest `{name}` in `{}`", self.path))
            .header(header::CONTENT_TYPE, kind)
            .body(CallBody::Bytes(bytes.clone()));
        let answer = line.expect(&call, &[StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED]).await?;
        let stated = answer.header("docker-content-digest").and_then(|text| Digest::parse(text).ok());
        let actual = Digest::of(bytes);
        if let Some(stated) = stated.filter(|stated| *stated != actual) {
            return Err(line.protocol(format!("it took {actual} for {stated}")));
        }
        Ok(answer.header("oci-subject").is_some())
    }
}

impl Line {
    /// Whether something is there.
    async fn has(&self, path: &str) -> Result<bool, RegistryError> {
        let call =
            Call::new(Method::HEAD, self.url(path)?, path).header(header::ACCEPT, HeaderValue::from_static("*/*"));
        match self.expect(&call, &[StatusCode::OK]).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn begin(&self, path: &str, query: &[(&str, String)]) -> Result<Begun, RegistryError> {
        let mut url = self.url(&format!("v2/{path}/blobs/uploads/"))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let call = Call::new(Method::POST, url, format!("repository `{path}`"));
        let answer = self.expect(&call, &[StatusCode::ACCEPTED, StatusCode::CREATED]).await?;
        if answer.status() == StatusCode::CREATED {
            return Ok(Begun::Mounted);
        }
        let chunk_bytes = answer.header("oci-chunk-min-length").and_then(|text| text.trim().parse().ok());
        let url = self.location(&answer, &call.url)?;
        Ok(Begun::Session(Session { url, chunk_bytes }))
    }

    /// Where an upload goes on. That may be another host; the login goes along to the registry's own only.
    fn location(&self, answer: &Answer, from: &Url) -> Result<Url, RegistryError> {
        let location = answer.header("location").and_then(|location| from.join(location).ok());
        let url = location.ok_or_else(|| self.protocol("it names no place for an upload"))?;
        let is_own = url.origin() == self.site.base.origin();
        // Behind a proxy that ends TLS, some registries name themselves without it.
        if !is_own && url.host_str() == self.site.base.host_str() && url.scheme() == "http" {
            let mut own = self.site.base.clone();
            own.set_path(url.path());
            own.set_query(url.query());
            return Ok(own);
        }
        if url.scheme() != "https" && !self.site.is_plain() {
            return Err(self.protocol("it wants an upload without TLS"));
        }
        Ok(url)
    }

    async fn upload(
        &self,
        mut session: Session,
        repository: &Repository,
        content: &Content,
        source: &dyn BlobSource,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<(), RegistryError> {
        let insists = session.chunk_bytes.map(|bytes| bytes.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX));
        // A bound of ours (a proxy's) and a bound of the registry's: the registry knows better.
        let chunk_bytes = match (repository.chunk_bytes, insists) {
            (Some(own), Some(least)) => Some(own.max(least)),
            (own, least) => own.or(least),
        };
        let (mut offset, mut idle, mut cuts) = (0, 0, 0);
        loop {
            let rest = content.size - offset;
            let before = offset;
            let piece = chunk_bytes.filter(|chunk| rest > *chunk);
            let failure = match piece {
                Some(length) => match self.patch(&mut session, offset, length, source).await {
                    Ok(()) => {
                        offset += length;
                        told(offset);
                        idle = 0;
                        continue;
                    }
                    Err(error) => error,
                },
                None => match self.finish(&session, offset, content, source).await {
                    Ok(()) => {
                        told(content.size);
                        return Ok(());
                    }
                    Err(error) => error,
                },
            };
            cuts += 1;
            if !is_broken(&failure) || cuts >= CUTS_MAX {
                return Err(failure);
            }
            match self.whereabouts(&mut session).await? {
                Some(known) if known <= content.size => offset = known,
                // The registry has forgotten it, or knows more than there is: from the start.
                _ => match self.begin(&repository.path, &[]).await? {
                    Begun::Mounted => return Ok(()),
                    Begun::Session(fresh) => {
                        session = fresh;
                        offset = 0;
                    }
                },
            }
            idle = if offset > before { 1 } else { idle + 1 };
            if idle >= TRIES_MAX {
                return Err(failure);
            }
            sleep(backoff(idle)).await;
        }
    }

    /// Sends one piece of several.
    async fn patch(
        &self,
        session: &mut Session,
        offset: u64,
        length: u64,
        source: &dyn BlobSource,
    ) -> Result<(), RegistryError> {
        let open = || source.body(offset, length);
        let range = HeaderValue::try_from(format!("{offset}-{}", offset + length - 1));
        let call = Call::new(Method::PATCH, session.url.clone(), "upload that was begun")
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .header(header::CONTENT_RANGE, range.map_err(|_| self.protocol("no range"))?)
            .body(CallBody::Stream(length, &open));
        let answer = self.once(&call, &[StatusCode::ACCEPTED, StatusCode::NO_CONTENT]).await?;
        session.url = self.location(&answer, &session.url)?;
        Ok(())
    }

    /// Sends the last piece, or all at once, and names the digest.
    async fn finish(
        &self,
        session: &Session,
        offset: u64,
        content: &Content,
        source: &dyn BlobSource,
    ) -> Result<(), RegistryError> {
        let rest = content.size - offset;
        let open = || source.body(offset, rest);
        let mut url = session.url.clone();
        url.query_pairs_mut().append_pair("digest", &content.digest.to_string());
        let mut call = Call::new(Method::PUT, url, "upload that was begun")
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .body(CallBody::Stream(rest, &open));
        if offset > 0 && rest > 0 {
            let range = HeaderValue::try_from(format!("{offset}-{}", content.size - 1));
            call = call.header(header::CONTENT_RANGE, range.map_err(|_| self.protocol("no range"))?);
        }
        self.once(&call, &[StatusCode::CREATED, StatusCode::NO_CONTENT, StatusCode::OK]).await.map(drop)
    }

    /// How many bytes of an upload the registry has; `None` when it knows nothing of the upload.
    async fn whereabouts(&self, session: &mut Session) -> Result<Option<u64>, RegistryError> {
        let call = Call::new(Method::GET, session.url.clone(), "upload that was begun");
        let answer = self.send(&call).await?;
        if answer.status() != StatusCode::NO_CONTENT && answer.status() != StatusCode::OK {
            return Ok(None);
        }
        if answer.header("location").is_some() {
            session.url = self.location(&answer, &session.url)?;
        }
        Ok(answer.header("range").and_then(received))
    }
}

/// Whether an upload may be taken up again after this.
fn is_broken(error: &RegistryError) -> bool {
    match error {
        RegistryError::Unreachable { .. } | RegistryError::Limited { .. } | RegistryError::NotFound { .. } => true,
        RegistryError::Status { status, .. } => {
            status.is_server_error()
                || *status == StatusCode::RANGE_NOT_SATISFIABLE
                || *status == StatusCode::REQUEST_TIMEOUT
        }
        _ => false,
    }
}

/// How many bytes `Range: 0-99` says that there are. `0-0` is also what some say who have nothing: then one byte at
/// most is believed to be there that is not, and the digest at the end is what decides.
fn received(text: &str) -> Option<u64> {
    let (start, end) = text.trim().trim_start_matches("bytes=").split_once('-')?;
    let end: u64 = end.parse().ok()?;
    (start == "0").then(|| if end == 0 { 0 } else { end + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_has_of_an_upload_is_read_from_its_range() {
        assert_eq!(received("0-99"), Some(100));
        assert_eq!(received("bytes=0-99"), Some(100));
        assert_eq!(received("0-0"), Some(0));
        assert_eq!(received("5-9"), None);
        assert_eq!(received(""), None);
    }
}
