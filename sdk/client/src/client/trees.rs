//! What images come to: exported, compared, verified.

use super::{Call, Client, ClientError, Download, TRANSFER_TIME_MAX, with_query};
use crate::types::{ImageDiff, Verification, VerifyRequest};

impl Client {
    /// The file system of an image as one flat tar.
    pub async fn export_image(&self, reference: &str) -> Result<Download, ClientError> {
        self.download(Call::get(&with_query("/v1/images:export", &[("image", Some(reference))]))).await
    }

    /// How the file system of the image `after` differs from that of `before`.
    pub async fn compare_images(&self, before: &str, after: &str) -> Result<ImageDiff, ClientError> {
        let path = with_query("/v1/images:diff", &[("before", Some(before)), ("after", Some(after))]);
        self.json(Call::get(&path).within(TRANSFER_TIME_MAX), None::<&()>).await
    }

    /// Reads images again to see whether they are still what they were.
    pub async fn verify_images(&self, request: &VerifyRequest) -> Result<Verification, ClientError> {
        self.json(Call::post("/v1/images:verify").within(TRANSFER_TIME_MAX), Some(request)).await
    }
}
