//! The routes of images.

use super::{Call, Client, ClientError, Content, Download, TRANSFER_TIME_MAX, encoded, with_query};
use crate::types::{
    Image, ImageHistory, ImageList, ImageRemoved, ImageTag, ImageTagged, ImagesLoaded, ImagesPruned, ImagesUsage,
};

/// Which images are listed; the default is all, by name.
#[derive(Clone, Debug, Default)]
pub struct ImageQuery {
    /// Patterns of names, as in `debian:*`; one of them has to fit.
    pub references: Vec<String>,
    /// Only those without a name, or only those with one.
    pub dangling: Option<bool>,
    /// Labels that all have to be there, as in `key` or `key=value`.
    pub labels: Vec<String>,
    /// Only those that were made before this image.
    pub before: Option<String>,
    /// Only those that were made after this image.
    pub since: Option<String>,
    /// Only those that were made before this time, or so long ago, as in `24h`.
    pub until: Option<String>,
    /// At most so many.
    pub limit: Option<u32>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

/// Which images are pruned; the default is those without a name, and only shows them.
#[derive(Clone, Debug, Default)]
pub struct PruneQuery {
    /// Whether images with names go as well, if nobody uses them.
    pub all: bool,
    /// Labels that all have to be there.
    pub labels: Vec<String>,
    /// Labels none of which may be there.
    pub without_labels: Vec<String>,
    /// Only those that were made before this time, or so long ago, as in `24h`.
    pub until: Option<String>,
    /// Whether they really go.
    pub apply: bool,
    /// The plan that was shown; when it is no longer true, nothing goes.
    pub plan: Option<String>,
}

impl Client {
    /// Imports an archive: a root file system, what `docker save` writes, or an OCI layout.
    pub async fn import_image(&self, name: Option<&str>, archive: Content) -> Result<ImageList, ClientError> {
        let path = with_query("/v1/images/import", &[("name", name)]);
        self.transfer(Call::post(&path).sends("application/x-tar"), archive).await
    }

    /// Loads the images of an archive: what `docker save` writes, or an OCI layout.
    pub async fn load_images(&self, archive: Content) -> Result<ImagesLoaded, ClientError> {
        self.transfer(Call::post("/v1/images:load").sends("application/x-tar"), archive).await
    }

    /// An archive of images, as it is written. `format` is `docker-archive` or `oci-archive`, `compress` is `gzip` or
    /// `zstd`. It is whole when its last chunk was followed by the end, and not by an error.
    pub async fn save_images(
        &self,
        references: &[String],
        format: &str,
        compress: Option<&str>,
    ) -> Result<Download, ClientError> {
        let mut parameters: Vec<_> =
            references.iter().map(|reference| ("reference", Some(reference.as_str()))).collect();
        parameters.extend([("format", Some(format)), ("compress", compress)]);
        self.download(Call::get(&with_query("/v1/images:save", &parameters))).await
    }

    /// One page of images.
    pub async fn images(&self, query: &ImageQuery) -> Result<ImageList, ClientError> {
        let dangling = query.dangling.map(|dangling| dangling.to_string());
        let limit = query.limit.map(|limit| limit.to_string());
        let mut parameters = repeated("reference", &query.references);
        parameters.extend(repeated("label", &query.labels));
        parameters.extend([
            ("dangling", dangling.as_deref()),
            ("before", query.before.as_deref()),
            ("since", query.since.as_deref()),
            ("until", query.until.as_deref()),
            ("limit", limit.as_deref()),
            ("cursor", query.cursor.as_deref()),
        ]);
        self.get(&with_query("/v1/images", &parameters)).await
    }

    /// All that is known of one image.
    pub async fn image(&self, reference: &str) -> Result<Image, ClientError> {
        self.get(&format!("/v1/images/{}", encoded(reference))).await
    }

    /// The steps that made an image, newest first.
    pub async fn image_history(&self, reference: &str) -> Result<ImageHistory, ClientError> {
        self.get(&with_query("/v1/images:history", &[("reference", Some(reference))])).await
    }

    /// Gives an image one more name.
    pub async fn tag_image(&self, source: &str, name: &str) -> Result<ImageTagged, ClientError> {
        let tag = ImageTag { source: source.to_owned(), name: name.to_owned() };
        self.json(Call::post("/v1/images:tag"), Some(&tag)).await
    }

    /// Takes a name away, and what nothing else needs with it. With `force` all names of an image go, and one that is
    /// in use stays without a name.
    pub async fn remove_image(&self, reference: &str, force: bool) -> Result<ImageRemoved, ClientError> {
        let path = format!("/v1/images/{}", encoded(reference));
        let call = Call::delete(&with_query(&path, &[("force", force.then_some("true"))]));
        self.json(call.within(TRANSFER_TIME_MAX), None::<&()>).await
    }

    /// Lets images go that nobody needs, or shows which would go.
    pub async fn prune_images(&self, query: &PruneQuery) -> Result<ImagesPruned, ClientError> {
        let mut parameters = repeated("label", &query.labels);
        parameters.extend(repeated("without_label", &query.without_labels));
        parameters.extend([
            ("all", query.all.then_some("true")),
            ("until", query.until.as_deref()),
            ("dry_run", Some(if query.apply { "false" } else { "true" })),
            ("plan", query.plan.as_deref()),
        ]);
        let call = Call::post(&with_query("/v1/images:prune", &parameters));
        self.json(call.within(TRANSFER_TIME_MAX), None::<&()>).await
    }

    /// What images take on disk.
    pub async fn images_usage(&self) -> Result<ImagesUsage, ClientError> {
        self.json(Call::get("/v1/images:du").within(TRANSFER_TIME_MAX), None::<&()>).await
    }
}

fn repeated<'a>(name: &'static str, values: &'a [String]) -> Vec<(&'static str, Option<&'a str>)> {
    values.iter().map(|value| (name, Some(value.as_str()))).collect()
}
