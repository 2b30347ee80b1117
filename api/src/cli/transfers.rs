//! `ampoule image pull` and `push`: bars on a terminal, plain lines in a pipe, one document for programs.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

use ampoule_client::client::Transfer;
use ampoule_client::types::{LayerState, PullRequest, PushRequest, TransferEvent};
use ampoule_client::{Client, ClientError};
use ampoule_engine::image::reference::Reference;
use anyhow::{Result, bail};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::amount::shown_size;
use super::{logins, table};

/// Digits of a digest that tell layers apart.
const DIGEST_DIGITS: usize = 12;

#[derive(Args)]
pub(super) struct PullArguments {
    /// Name, as in alpine, ghcr.io/user/app:1 or host:5000/x@sha256:…
    image: String,
    /// Platform, as in linux/amd64 [default: that of the service]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(super) struct PushArguments {
    /// The image, by name or digest
    image: String,
    /// Where it goes [default: its own name]
    target: Option<String>,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
struct Show {
    /// Print the digest only
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Pulls.
pub(super) async fn pull(client: &Client, arguments: PullArguments) -> Result<()> {
    let login = logins::find(Reference::parse(&arguments.image)?.domain())?;
    let request = PullRequest { reference: arguments.image, platform: arguments.platform };
    let transfer = client.pull_image(&request, login.as_ref()).await?;
    follow(transfer, &arguments.show).await
}

/// Pushes.
pub(super) async fn push(client: &Client, arguments: PushArguments) -> Result<()> {
    let target = arguments.target.as_ref().unwrap_or(&arguments.image);
    let login = logins::find(Reference::parse(target)?.domain())?;
    let request = PushRequest { reference: arguments.image, target: arguments.target };
    let transfer = client.push_image(&request, login.as_ref()).await?;
    follow(transfer, &arguments.show).await
}

/// Pushes an image to where its name says, and tells of it on standard error.
pub(super) async fn push_quietly(client: &Client, image: &str) -> Result<()> {
    let login = logins::find(Reference::parse(image)?.domain())?;
    let request = PushRequest { reference: image.to_owned(), target: None };
    let mut transfer = client.push_image(&request, login.as_ref()).await?;
    while let Some(event) = transfer.next().await? {
        match event {
            TransferEvent::Failed { problem } => {
                return Err(ClientError::Refused { problem, retry_after: None }.into());
            }
            TransferEvent::Pushed(_) => {
                writeln!(io::stderr(), "{}", summary(&event))?;
                return Ok(());
            }
            _ => {}
        }
    }
    bail!("the service hung up before the end\nhint: its log says why")
}

async fn follow(mut transfer: Transfer, show: &Show) -> Result<()> {
    let mut display = match (show.quiet || show.json, io::stderr().is_terminal()) {
        (true, _) => Display::Nothing,
        (false, true) => Display::Bars(Bars::default()),
        (false, false) => Display::Lines,
    };
    while let Some(event) = transfer.next().await? {
        let told = match &event {
            TransferEvent::Pulled(pulled) => Some((serde_json::to_string_pretty(pulled)?, pulled.digest.clone())),
            TransferEvent::Pushed(pushed) => Some((serde_json::to_string_pretty(pushed)?, pushed.digest.clone())),
            TransferEvent::Failed { problem } => {
                display.clear();
                return Err(ClientError::Refused { problem: problem.clone(), retry_after: None }.into());
            }
            _ => None,
        };
        let Some((document, digest)) = told else {
            display.show(&event)?;
            continue;
        };
        display.clear();
        let text = if show.json {
            document
        } else if show.quiet {
            digest
        } else {
            summary(&event)
        };
        writeln!(io::stdout(), "{text}")?;
        return Ok(());
    }
    bail!("the service hung up before the end\nhint: its log says why")
}

fn summary(event: &TransferEvent) -> String {
    match event {
        TransferEvent::Pulled(pulled) => {
            let name = pulled.image.reference.as_deref().unwrap_or("(without a name)");
            let news = if pulled.was_here { "is up to date" } else { "pulled" };
            let size = shown_size(pulled.image.size_bytes);
            format!("{}  {}  {size}  {news}", table::plain(name), pulled.digest)
        }
        TransferEvent::Pushed(pushed) => {
            let list = if pushed.index_left_out { "  (this platform only)" } else { "" };
            format!("{}  {}  pushed{list}", table::plain(&pushed.target), pushed.digest)
        }
        _ => String::new(),
    }
}

/// How progress is shown, on standard error.
enum Display {
    Nothing,
    Lines,
    Bars(Bars),
}

impl Display {
    fn show(&mut self, event: &TransferEvent) -> io::Result<()> {
        match self {
            Display::Nothing => Ok(()),
            Display::Lines => match line(event) {
                Some(line) => writeln!(io::stderr(), "{line}"),
                None => Ok(()),
            },
            Display::Bars(bars) => {
                bars.show(event);
                Ok(())
            }
        }
    }

    fn clear(&self) {
        if let Display::Bars(bars) = self {
            // Nobody can be told that the terminal is gone.
            let _ = bars.all.clear();
        }
    }
}

/// What a log wants to know: beginnings and ends, not every byte.
fn line(event: &TransferEvent) -> Option<String> {
    match event {
        TransferEvent::Resolving { reference } => Some(format!("looking for {}", table::plain(reference))),
        TransferEvent::Resolved { digest, layers } => {
            let bytes = layers.iter().map(|layer| layer.size_bytes).sum();
            Some(format!("{digest}: {} layers, {}", layers.len(), shown_size(bytes)))
        }
        TransferEvent::Layer { digest, state, total_bytes, .. } => {
            let word = word(*state).filter(|_| *state != LayerState::Moving)?;
            Some(format!("{}: {word} ({})", short(digest), shown_size(*total_bytes)))
        }
        _ => None,
    }
}

fn word(state: LayerState) -> Option<&'static str> {
    Some(match state {
        LayerState::Present => "already there",
        LayerState::Moving => return None,
        LayerState::Unpacked => "unpacked",
        LayerState::Mounted => "taken over from another repository",
        LayerState::Sent => "sent",
    })
}

fn short(digest: &str) -> String {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    table::plain(&hex.chars().take(DIGEST_DIGITS).collect::<String>())
}

/// A bar for each layer.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    layers: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn show(&mut self, event: &TransferEvent) {
        match event {
            TransferEvent::Resolved { layers, .. } => {
                for layer in layers {
                    self.bar(&layer.digest, layer.size_bytes);
                }
            }
            TransferEvent::Layer { digest, state, bytes, total_bytes } => {
                let bar = self.bar(digest, *total_bytes);
                bar.set_position(*bytes);
                match word(*state) {
                    Some(word) => bar.finish_with_message(word),
                    None if bytes == total_bytes => bar.set_message("unpacking"),
                    None => {}
                }
            }
            _ => {}
        }
    }

    fn bar(&mut self, digest: &str, total: u64) -> &ProgressBar {
        let all = &self.all;
        self.layers.entry(digest.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes:>10} of {total_bytes:<10} {msg}");
            let bar = all.add(ProgressBar::new(total).with_prefix(short(digest)));
            style.map(|style| bar.set_style(style.progress_chars("=> "))).ok();
            bar
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_told_of_beginnings_and_ends_only() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let layer = |state| TransferEvent::Layer { digest: digest.clone(), state, bytes: 1, total_bytes: 2048 };
        assert_eq!(line(&layer(LayerState::Moving)), None);
        assert_eq!(line(&layer(LayerState::Unpacked)).as_deref(), Some("aaaaaaaaaaaa: unpacked (2.0 KiB)"));
    }
}
