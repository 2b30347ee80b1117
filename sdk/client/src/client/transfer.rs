//! Pulls and pushes of the client: a request whose answer is its progress.

use std::collections::VecDeque;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use hyper::header::HeaderValue;
use serde::Serialize;

use super::{Call, Client, ClientError, Download, SseEvent, SseParser, whole};
use crate::types::{PullRequest, PushRequest, RegistryLogin, TransferEvent};

/// The progress of a pull or a push. Dropping it stops the service's work.
pub struct Transfer {
    download: Download,
    parser: SseParser,
    ready: VecDeque<SseEvent>,
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
        let call = Call { accept: "text/event-stream", content_type: "application/json", ..Call::post(path) };
        let call = Call { login: login.map(header).transpose()?, ..call };
        let wrong = |source| ClientError::Answer { request: call.name(), source };
        let document = Bytes::from(serde_json::to_vec(request).map_err(wrong)?);
        let length = document.len() as u64;
        let download = self.download_of(call, whole(document), Some(length)).await?;
        Ok(Transfer { download, parser: SseParser::new(), ready: VecDeque::new() })
    }
}

impl Transfer {
    /// The next event; `None` after the last.
    ///
    /// # Errors
    /// When the connection broke, the stream passes a bound, or an event is of no kind that is known here.
    pub async fn next(&mut self) -> Result<Option<TransferEvent>, ClientError> {
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
