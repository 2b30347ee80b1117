//! `--prove-reproducible`: the same is built once more, every step anew, and has to come out the same.

use std::io::{self, Write};

use ampoule_client::Client;
use ampoule_client::types::{BuildRequest, BuildResult};
use anyhow::{Result, bail};

use super::progress::harmless;
use crate::cli::trees;

/// What a build is asked for a second time: without names, so that those stay with the first.
pub(super) fn again(request: &BuildRequest) -> BuildRequest {
    BuildRequest { tags: Vec::new(), no_cache: true, pull: false, detach: false, ..request.clone() }
}

/// A build can come out the same only when it depends on no clock.
pub(super) fn check(request: &BuildRequest) -> Result<()> {
    if request.source_date_epoch.is_none() {
        bail!("a build depends on the clock\nhint: SOURCE_DATE_EPOCH=$(git log -1 --format=%ct), or any other time");
    }
    Ok(())
}

/// Says whether two builds came out the same, and how they first differ.
pub(super) async fn compare(client: &Client, first: &BuildResult, second: &BuildResult) -> Result<bool> {
    let (one, other) = (&first.image.digest, &second.image.digest);
    if one == other {
        writeln!(io::stderr(), "reproducible: the second build is {other} as well")?;
        return Ok(true);
    }
    let diff = client.compare_images(one, other).await?;
    let difference = match diff.changes.first() {
        Some(change) => trees::row(change).join("  "),
        None => "no file differs, but the config or the layers do".to_owned(),
    };
    let text = format!(
        "error: the second build is another image, {other}\nthe first difference: {}\nhint: `ampoule image diff {one} {other}` \
         shows all\n",
        harmless(&difference)
    );
    io::stderr().write_all(text.as_bytes())?;
    Ok(false)
}
