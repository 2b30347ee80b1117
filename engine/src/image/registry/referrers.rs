//! What is said about an image: signatures, lists of contents. Registries that know of it keep the list themselves; for
//! others it is kept under a tag that is made of the digest.

use bytes::Bytes;
use reqwest::header::{self, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::Repository;
use super::content::no_line;
use super::failure::RegistryError;
use super::transport::{Call, Line};
use crate::image::digest::Digest;
use crate::image::manifest::{INDEX_TYPE, MANIFEST_BYTES_MAX};

impl Repository {
    /// The list of what refers to a manifest, as an OCI index; empty when nothing does.
    ///
    /// # Errors
    /// The registry does not say.
    pub async fn referrers(&self, subject: &Digest) -> Result<Bytes, RegistryError> {
        let line = self.lines.last().ok_or_else(no_line)?;
        let call = line.get(&format!("v2/{}/referrers/{subject}", self.path))?;
        match line.read(&call, MANIFEST_BYTES_MAX).await {
            Ok((_, bytes)) => Ok(bytes),
            Err(error) if error.is_not_found() => match self.manifest(&tag(subject)).await {
                Ok(fetched) => Ok(fetched.bytes),
                Err(error) if error.is_not_found() => Ok(index(Vec::new())),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Adds a manifest to the list of what refers to its subject, in a registry that does not do so itself.
    ///
    /// # Errors
    /// The registry refuses, or its list is none.
    pub async fn add_referrer(&self, subject: &Digest, descriptor: Value) -> Result<(), RegistryError> {
        let line = self.lines.last().ok_or_else(no_line)?;
        let call = line.get(&format!("v2/{}/referrers/{subject}", self.path))?;
        if line.send(&call).await?.status() == StatusCode::OK {
            return Ok(());
        }
        let known = match self.manifest(&tag(subject)).await {
            Ok(fetched) => fetched.bytes,
            Err(error) if error.is_not_found() => index(Vec::new()),
            Err(error) => return Err(error),
        };
        let list: Value =
            serde_json::from_slice(&known).map_err(|_| line.protocol("its list of referrers is no list"))?;
        let mut manifests = list.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
        manifests.retain(|known| known.get("digest") != descriptor.get("digest"));
        manifests.push(descriptor);
        self.put_manifest(&tag(subject), &index(manifests), INDEX_TYPE).await.map(drop)
    }
}

impl Line {
    fn get(&self, path: &str) -> Result<Call<'static>, RegistryError> {
        let call = Call::new(Method::GET, self.url(path)?, "list of referrers");
        Ok(call.header(header::ACCEPT, HeaderValue::from_static(INDEX_TYPE)))
    }
}

/// The tag of the list, as OCI distribution 1.1 makes it.
fn tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}

fn index(manifests: Vec<Value>) -> Bytes {
    json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests }).to_string().into()
}
