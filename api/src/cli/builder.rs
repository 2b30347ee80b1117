//! `ampoule builder`: what builds keep for the next ones.

use std::io::{self, Write};
use std::process::ExitCode;

use ampoule_client::Client;
use ampoule_client::types::{BuildCache, BuildCachesRemoved};
use anyhow::Result;
use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::amount::shown_size;
use super::images::confirmed;
use super::table;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show what the caches of `RUN --mount=type=cache` take on disk
    Du {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Remove caches of `RUN --mount=type=cache` that no build uses
    #[command(
        after_help = "Examples:\n  ampoule builder prune\n  ampoule builder prune --id /root/.cache/go-build --force"
    )]
    Prune(PruneArguments),
}

#[derive(Args)]
pub(super) struct PruneArguments {
    /// Only those with this id, as `du` shows it
    #[arg(long)]
    id: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Does one of the commands.
pub(super) async fn run(client: &Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Du { json } => usage(client, json).await?,
        Command::Prune(arguments) => prune(client, &arguments).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn usage(client: &Client, json: bool) -> Result<()> {
    let list = client.build_caches().await?;
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(());
    }
    table::print(&["ID", "SIZE", "LAST USED", "IN USE"], &rows(&list.caches))?;
    writeln!(io::stdout(), "{} of {}", shown_size(list.size_bytes), shown_size(list.size_bytes_max))?;
    Ok(())
}

fn rows(caches: &[BuildCache]) -> Vec<Vec<String>> {
    let time = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M UTC").to_string();
    let row = |cache: &BuildCache| {
        let size = cache.size_bytes.map_or_else(|| "-".to_owned(), shown_size);
        let in_use = if cache.in_use { "yes" } else { "no" };
        vec![cache.id.clone(), size, cache.last_used.map_or_else(|| "-".to_owned(), time), in_use.to_owned()]
    };
    caches.iter().map(row).collect()
}

async fn prune(client: &Client, arguments: &PruneArguments) -> Result<()> {
    if !arguments.force {
        let list = client.build_caches().await?;
        let is_wanted = |cache: &BuildCache| arguments.id.as_ref().is_none_or(|id| *id == cache.id) && !cache.in_use;
        let wanted: Vec<BuildCache> = list.caches.into_iter().filter(is_wanted).collect();
        if wanted.is_empty() {
            return print(
                &BuildCachesRemoved { removed: Vec::new(), kept: Vec::new(), freed_bytes: 0 },
                arguments.json,
            );
        }
        for row in rows(&wanted) {
            writeln!(io::stderr(), "would go\t{}\t{}", table::plain(&row[0]), row[1])?;
        }
        if !confirmed()? {
            return Ok(());
        }
    }
    print(&client.remove_build_caches(arguments.id.as_deref()).await?, arguments.json)
}

fn print(removed: &BuildCachesRemoved, json: bool) -> Result<()> {
    let mut stdout = io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(removed)?)?;
        return Ok(());
    }
    for (what, caches) in [("went", &removed.removed), ("kept, in use", &removed.kept)] {
        for row in rows(caches) {
            writeln!(stdout, "{what}\t{}\t{}", table::plain(&row[0]), row[1])?;
        }
    }
    writeln!(stdout, "freed\t{}", shown_size(removed.freed_bytes))?;
    Ok(())
}
