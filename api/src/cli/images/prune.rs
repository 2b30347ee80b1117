//! `ampoule image prune`: shows what would go, asks, and lets exactly that go.

use std::io::{self, IsTerminal, Write};

use ampoule_client::Client;
use ampoule_client::client::PruneQuery;
use ampoule_client::types::ImagesPruned;
use anyhow::{Result, bail};
use clap::Args;

use super::prune_query;
use super::show::short;
use crate::cli::amount::shown_size;
use crate::cli::table;

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// Images with names as well, if no job and no lease needs them
    #[arg(short, long)]
    all: bool,
    /// Only those that fit: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]; may be given several times
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Show what would go and how much that frees, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(super) async fn run(client: &Client, arguments: &Arguments) -> Result<()> {
    let query = prune_query(&arguments.filter, arguments.all)?;
    let shown = client.prune_images(&query).await?;
    if arguments.dry_run {
        return print(&shown, arguments.json);
    }
    if !arguments.force {
        print(&shown, false)?;
        if shown.images.is_empty() || !confirmed()? {
            return Ok(());
        }
    }
    let done = client.prune_images(&PruneQuery { apply: true, plan: Some(shown.plan), ..query }).await?;
    print(&done, arguments.json)
}

fn print(pruned: &ImagesPruned, json: bool) -> Result<()> {
    let mut stdout = io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(pruned)?)?;
        return Ok(());
    }
    let named = |names: &[String]| if names.is_empty() { "-".to_owned() } else { table::plain(&names.join(", ")) };
    let (go, free) = if pruned.dry_run { ("would go", "would free") } else { ("went", "freed") };
    for image in &pruned.images {
        writeln!(stdout, "{go}\t{}\t{}\t{}", short(&image.digest), named(&image.names), shown_size(image.size_bytes))?;
    }
    for image in &pruned.kept {
        writeln!(stdout, "kept\t{}\t{}\tused by {}", short(&image.digest), named(&image.names), image.by)?;
    }
    let (stored, unpacked) = (pruned.freed_bytes, pruned.freed_unpacked_bytes);
    writeln!(stdout, "{free}\t{} stored, {} unpacked", shown_size(stored), shown_size(unpacked))?;
    Ok(())
}

/// Asks whether what was shown may go.
pub(in crate::cli) fn confirmed() -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("nobody can be asked here; give --force to let them go");
    }
    write!(io::stderr(), "Let them go? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
