//! Pulls and pushes of the client, and what they have in common with builds: a request whose answer is its progress.

use std::collections::VecDeque;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use hyper::header::HeaderValue;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Call, Client, ClientError, Download, SseEvent, SseParser, whole};
use crate::types::{PullRequest, PushRequest, RegistryLogin, TransferEvent};

/// The progress of a pull, a push or a build. Dropping it stops the service's work.
pub struct Transfer<E = TransferEvent> {
    download: Download,
    parser: SseParser,
    ready: VecDeque<SseEvent>,
    kind: PhantomData<fn() -> E>,
}

impl Client {
    /// Pulls an image from a registry, as somebody.
    pub async fn pull_image(
        &self,
        request: &PullRequest,
        login: Option<&RegistryLogin>,
    ) -> Result<Transfer, ClientError> {
        self.move_image("/v1/images:pull", request, login).await
    }

    /// Pushes an image to a registry, as somebody.
    pub async fn push_image(
        &self,
        request: &PushRequest,
        login: Option<&RegistryLogin>,
    ) -> Result<Transfer, ClientError> {
        self.move_image("/v1/images:push", request, login).await
    }

    async fn move_image(
        &self,
        path: &str,
        request: &impl Serialize,
        login: Option<&RegistryLogin>,
    ) -> Result<Transfer, ClientError> {
        let call = Call { accept: "text/event-stream", ..Call::post(path) }.sends("application/json");
        let call = Call { login: login.map(header).transpose()?, ..call };
        let wrong = |source| ClientError::Answer { request: call.name(), source };
        let document = Bytes::from(serde_json::to_vec(request).map_err(wrong)?);
        let length = document.len() as u64;
        let download = self.download_of(call, whole(document), Some(length)).await?;
        Ok(Transfer::new(download))
    }
}

impl<E> Transfer<E> {
    pub(super) fn new(download: Download) -> Transfer<E> {
        Transfer { download, parser: SseParser::new(), ready: VecDeque::new(), kind: PhantomData }
    }
}

impl<E: DeserializeOwned> Transfer<E> {
    /// The next event; `None` after the last.
    ///
    /// # Errors
    /// When the connection broke, the stream passes a bound, or an event is of no kind that is known here.
    pub async fn next(&mut self) -> Result<Option<E>, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                let parsed = serde_json::from_str(&event.data)
                    .map_err(|source| ClientError::Answer { request: self.download.request.clone(), source })?;
                return Ok(Some(parsed));
            }
            match self.download.chunk().await? {
                Some(bytes) => self.parser.push(&bytes, &mut self.ready)?,
                None => return Ok(None),
            }
        }
    }
}

fn header(login: &RegistryLogin) -> Result<HeaderValue, ClientError> {
    let document = serde_json::to_vec(login).map_err(|_| ClientError::Unsendable("the login"))?;
    let mut value =
        HeaderValue::try_from(URL_SAFE.encode(document)).map_err(|_| ClientError::Unsendable("the login"))?;
    value.set_sensitive(true);
    Ok(value)
}
