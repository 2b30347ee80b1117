//! Images for people to look at: lists, histories, what they take on disk.

use std::io::{self, Write};

use ampoule_client::Client;
use ampoule_client::client::ImageQuery;
use ampoule_client::types::{Image, ImageList, ImageStep, ImageUsage, UsageReclaimable};
use anyhow::Result;

use crate::cli::amount::shown_size;
use crate::cli::table;

/// Letters of a digest that a table shows: `sha256:` and twelve digits.
const DIGEST_LETTERS: usize = 19;
/// Letters of a command that a table shows.
const COMMAND_LETTERS: usize = 60;

/// Lists images, all pages of them.
pub(super) async fn list(client: &Client, query: ImageQuery, json: bool, quiet: bool) -> Result<()> {
    let mut query = query;
    let mut list = ImageList { images: Vec::new(), next: None };
    loop {
        let page = client.images(&query).await?;
        list.images.extend(page.images);
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
    }
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&list)?)?;
    } else if quiet {
        let mut stdout = io::stdout().lock();
        list.images.iter().try_for_each(|image| writeln!(stdout, "{}", image.digest))?;
    } else {
        let rows: Vec<Vec<String>> = list.images.iter().map(row).collect();
        table::print(&["IMAGE", "DIGEST", "LAYERS", "SIZE", "SHARED", "UNIQUE", "CREATED"], &rows)?;
    }
    Ok(())
}

fn row(image: &Image) -> Vec<String> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), shown_size);
    let name = image.reference.as_deref().unwrap_or("-");
    vec![
        if image.damage.is_some() { format!("{name} (damaged)") } else { name.to_owned() },
        short(&image.digest),
        image.layers.to_string(),
        shown_size(image.size_bytes),
        size(image.shared_bytes),
        size(image.unique_bytes),
        image.created.map_or_else(|| "-".to_owned(), |created| created.strftime("%Y-%m-%d").to_string()),
    ]
}

/// The start of a digest.
pub(super) fn short(digest: &str) -> String {
    digest.get(..DIGEST_LETTERS).unwrap_or(digest).to_owned()
}

/// Shows the steps that made an image, newest first.
pub(super) async fn history(client: &Client, image: &str, no_trunc: bool, json: bool) -> Result<()> {
    let history = client.image_history(image).await?;
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&history)?)?;
        return Ok(());
    }
    let row = |step: &ImageStep| {
        let command = step.created_by.clone().unwrap_or_default();
        let is_long = !no_trunc && command.chars().count() > COMMAND_LETTERS;
        vec![
            step.layer.as_deref().map_or_else(|| "(empty)".to_owned(), short),
            step.created.map_or_else(|| "-".to_owned(), |created| created.strftime("%Y-%m-%d %H:%M").to_string()),
            if is_long { command.chars().take(COMMAND_LETTERS).chain(['…']).collect() } else { command },
            step.unpacked_bytes.map_or_else(|| "-".to_owned(), shown_size),
            step.comment.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = history.steps.iter().map(row).collect();
    Ok(table::print(&["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows)?)
}

/// Shows what images take on disk.
pub(super) async fn usage(client: &Client, json: bool) -> Result<()> {
    let usage = client.images_usage().await?;
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&usage)?)?;
        return Ok(());
    }
    let row = |image: &ImageUsage| {
        vec![
            if image.names.is_empty() { "-".to_owned() } else { image.names.join(", ") },
            short(&image.digest),
            shown_size(image.stored.shared_bytes),
            shown_size(image.stored.unique_bytes),
            shown_size(image.unpacked.shared_bytes),
            shown_size(image.unpacked.unique_bytes),
        ]
    };
    let rows: Vec<_> = usage.images.iter().map(row).collect();
    table::print(&["IMAGE", "DIGEST", "SHARED", "UNIQUE", "UNPACKED SHARED", "UNPACKED UNIQUE"], &rows)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout)?;
    writeln!(stdout, "images\t{}", usage.images.len())?;
    writeln!(stdout, "blobs\t{}\t{}", usage.stored.count, shown_size(usage.stored.total_bytes))?;
    writeln!(stdout, "unpacked layers\t{}\t{}", usage.unpacked.count, shown_size(usage.unpacked.total_bytes))?;
    let freed = |what: UsageReclaimable| shown_size(what.stored_bytes + what.unpacked_bytes);
    writeln!(stdout, "`image prune` frees\t{}\t{}", usage.dangling.images, freed(usage.dangling))?;
    writeln!(stdout, "`image prune --all` frees\t{}\t{}", usage.unused.images, freed(usage.unused))?;
    Ok(())
}
