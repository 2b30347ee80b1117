//! `ampoule token`: the secrets of TCP clients.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use ampoule_client::Client;
use ampoule_client::types::TokenRequest;
use anyhow::{Context as _, Result};
use clap::Subcommand;
use jiff::{SignedDuration, Timestamp};

use super::{amount, table};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a token and print its secret, which is told only this once
    #[command(after_help = "Example:\n  ampoule token create ci --expires 90d > ci.token")]
    Create {
        /// Who will hold it: shown in job lists, policies and the log
        name: String,
        /// How long it works, as in 90d; for ever, when left out
        #[arg(long, value_name = "TIME", value_parser = amount::time)]
        expires: Option<Duration>,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// List tokens, without their secrets
    Ls {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Make tokens worthless, at once
    Revoke {
        /// Names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Does one of the commands.
pub(super) async fn run(client: &Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Create { name, expires, json } => create(client, name, expires, json).await?,
        Command::Ls { json } => list(client, json).await?,
        Command::Revoke { names } => {
            for name in names {
                client.revoke_token(&name).await.with_context(|| format!("could not revoke the token `{name}`"))?;
                writeln!(io::stdout(), "{name}")?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(client: &Client, name: String, expires: Option<Duration>, json: bool) -> Result<()> {
    let expires = match expires {
        Some(time) => {
            let time = SignedDuration::try_from(time).context("the token would outlive the calendar")?;
            Some(Timestamp::now().checked_add(time).context("the token would outlive the calendar")?)
        }
        None => None,
    };
    let created = client.create_token(&TokenRequest { name, expires }).await?;
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&created)?)?;
    } else {
        writeln!(io::stdout(), "{}", created.secret)?;
    }
    Ok(())
}

async fn list(client: &Client, json: bool) -> Result<()> {
    let list = client.tokens().await?;
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(());
    }
    let day = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M UTC").to_string();
    let rows: Vec<Vec<String>> = list
        .tokens
        .iter()
        .map(|token| vec![token.name.clone(), day(token.created), token.expires.map_or("never".to_owned(), day)])
        .collect();
    table::print(&["NAME", "CREATED", "EXPIRES"], &rows)?;
    Ok(())
}
