//! Pulls, pushes and builds of the client: a request whose answer is its progress.

use std::collections::VecDeque;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use hyper::header::HeaderValue;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Call, Client, ClientError, Content, Download, SseEvent, SseParser, TRANSFER_TIME_MAX, whole, with_query};
use crate::types::{BuildEvent, BuildRequest, PullRequest, PushRequest, RegistryLogin, TransferEvent};

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
        let call = Call { accept: "text/event-stream", content_type: "application/json", ..Call::post(path) };
        let call = Call { login: login.map(header).transpose()?, ..call };
        let wrong = |source| ClientError::Answer { request: call.name(), source };
        let document = Bytes::from(serde_json::to_vec(request).map_err(wrong)?);
        let length = document.len() as u64;
        let download = self.download_of(call, whole(document), Some(length)).await?;
        Ok(Transfer::new(download))
    }

    /// Builds an image from a context, a plain tar.
    pub async fn build_image(
        &self,
        request: &BuildRequest,
        context: Content,
    ) -> Result<Transfer<BuildEvent>, ClientError> {
        let name = "POST /v1/builds".to_owned();
        let options = serde_json::to_string(request).map_err(|source| ClientError::Answer { request: name, source })?;
        let path = with_query("/v1/builds", &[("options", Some(&options))]);
        let call = Call { accept: "text/event-stream", content_type: "application/x-tar", ..Call::post(&path) };
        let (body, length) = context.into_body();
        self.download_of(call.within(TRANSFER_TIME_MAX), body, length).await.map(Transfer::new)
    }
}

impl<E> Transfer<E> {
    fn new(download: Download) -> Transfer<E> {
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
