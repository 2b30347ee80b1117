//! Builds of the client: asked for with a form of a request and a context, listed, followed and stopped.

use std::hash::{BuildHasher, Hasher, RandomState};

use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;

use super::connection::Body;
use super::{Call, Client, ClientError, Content, TRANSFER_TIME_MAX, Transfer, encoded, with_query};
use crate::types::{Build, BuildEvent, BuildList, BuildRequest};

/// Which builds are listed; the default is all, newest first.
#[derive(Clone, Debug, Default)]
pub struct BuildQuery {
    /// Only those in this state, as in `running`.
    pub state: Option<String>,
    /// At most so many.
    pub limit: Option<u32>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

impl Client {
    /// Builds an image from a context, a plain tar. Dropping the answer stops the build.
    pub async fn build_image(
        &self,
        request: &BuildRequest,
        context: Content,
    ) -> Result<Transfer<BuildEvent>, ClientError> {
        let (call, body, length) = form(&BuildRequest { detach: false, ..request.clone() }, context)?;
        self.download_of(Call { accept: "text/event-stream", ..call }, body, length).await.map(Transfer::new)
    }

    /// Starts a build, which goes on by itself.
    pub async fn detach_build(&self, request: &BuildRequest, context: Content) -> Result<Build, ClientError> {
        let (call, body, length) = form(&BuildRequest { detach: true, ..request.clone() }, context)?;
        let name = call.name();
        let bytes = self.exchange(call, body, length).await?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Answer { request: name, source })
    }

    /// One page of builds.
    pub async fn builds(&self, query: &BuildQuery) -> Result<BuildList, ClientError> {
        let limit = query.limit.map(|limit| limit.to_string());
        let parameters =
            [("state", query.state.as_deref()), ("limit", limit.as_deref()), ("cursor", query.cursor.as_deref())];
        self.get(&with_query("/v1/builds", &parameters)).await
    }

    /// All that is known of a build.
    pub async fn build(&self, id: &str) -> Result<Build, ClientError> {
        self.get(&format!("/v1/builds/{}", encoded(id))).await
    }

    /// What a build told, from its start; with `follow` until it ended.
    pub async fn build_log(&self, id: &str, follow: bool) -> Result<Transfer<BuildEvent>, ClientError> {
        let path = with_query(&format!("/v1/builds/{}/logs", encoded(id)), &[("follow", follow.then_some("true"))]);
        self.download(Call { accept: "text/event-stream", ..Call::get(&path) }).await.map(Transfer::new)
    }

    /// Stops a build that is under way.
    pub async fn cancel_build(&self, id: &str) -> Result<Build, ClientError> {
        self.json(Call::delete(&format!("/v1/builds/{}", encoded(id))), None::<&()>).await
    }
}

/// A form of a request as JSON and a tar behind it: the call with its body, and the length when that of the tar is known.
fn form(request: &BuildRequest, tar: Content) -> Result<(Call, Body, Option<u64>), ClientError> {
    // A context may hold anything but what nobody could know when it was made; the keys of hashers are random.
    let random = || RandomState::new().build_hasher().finish();
    let boundary = format!("ampoule-{:016x}{:016x}", random(), random());
    let call = Call::post("/v1/builds").sends(format!("multipart/form-data; boundary={boundary}"));
    let wrong = |source| ClientError::Answer { request: call.name(), source };
    let part = |name: &str, kind: &str| {
        format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\nContent-Type: {kind}\r\n\r\n")
    };
    let mut head = part("request", "application/json").into_bytes();
    serde_json::to_writer(&mut head, request).map_err(wrong)?;
    head.extend_from_slice(format!("\r\n{}", part("context", "application/x-tar")).as_bytes());
    let tail = format!("\r\n--{boundary}--\r\n").into_bytes();
    let (tar, length) = tar.into_body();
    let length = length.map(|length| length + (head.len() + tail.len()) as u64);
    let around = |bytes: Vec<u8>| stream::once(future::ok(Frame::data(Bytes::from(bytes))));
    let all = around(head).chain(BodyStream::new(tar)).chain(around(tail));
    Ok((call.within(TRANSFER_TIME_MAX), StreamBody::new(all).boxed_unsync(), length))
}
