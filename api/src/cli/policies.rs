//! `ampoule policy`: which policies are asked, and whether a file can be one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ampoule_client::Client;
use ampoule_plugins::{Policies, PolicySummary};
use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Subcommand};

use super::table;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the policies of the service, in the order in which they are asked
    Ls {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Load policies here, without the service, and say what they answer or why they cannot be bound
    #[command(
        after_help = "Examples:\n  ampoule policy check policies/policies.toml\n  ampoule policy check no-root.wasm"
    )]
    Check(CheckArguments),
}

#[derive(Args)]
pub(super) struct CheckArguments {
    /// WebAssembly component, WASI command, or a policies.toml with settings
    file: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Lists the policies of the service.
pub(super) async fn list(client: &Client, json: bool) -> Result<ExitCode> {
    let list = client.policies().await?;
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = list
        .policies
        .into_iter()
        .map(|policy| vec![policy.name, policy.mode, policy.on_failure, policy.hooks.join(" "), policy.digest])
        .collect();
    table::print(&["POLICY", "MODE", "ON FAILURE", "HOOKS", "DIGEST"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

/// Loads policies in this process and tells what they answer.
pub(super) fn check(arguments: &CheckArguments) -> Result<ExitCode> {
    let policies = load(&arguments.file)?;
    if arguments.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&policies)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for policy in policies {
        writeln!(io::stdout(), "{}: answers {} ({})", policy.name, policy.hooks.join(", "), policy.digest)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One policy of a WebAssembly file, or all that a `policies.toml` binds.
fn load(file: &Path) -> Result<Vec<PolicySummary>> {
    if file.extension().is_some_and(|extension| extension == "toml") {
        return Ok(bind(file)?.list());
    }
    let cache = Cache::make()?;
    let policy = ampoule_plugins::check(file, &cache.0)
        .with_context(|| format!("{} cannot be bound as a policy", file.display()))?;
    Ok(vec![policy])
}

/// All policies that a `policies.toml` binds, for this process alone.
pub(super) fn bind(file: &Path) -> Result<Policies> {
    let cache = Cache::make()?;
    Policies::load(file, &cache.0).context("the policies cannot be bound")
}

/// A folder for compiled code that nobody else can write to, gone afterwards.
struct Cache(PathBuf);

impl Cache {
    fn make() -> Result<Cache> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| anyhow!("no random bytes: {error}"))?;
        let folder = std::env::temp_dir().join(format!("ampoule-check-{:016x}", u64::from_ne_bytes(bytes)));
        rustix::fs::mkdir(&folder, rustix::fs::Mode::RWXU)
            .with_context(|| format!("could not make {}", folder.display()))?;
        Ok(Cache(folder))
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // A folder that cannot be removed is of no harm in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
