//! `ampoule image export`, `diff` and `verify`: what images come to.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ampoule_client::Client;
use ampoule_client::types::{ChangeKind, FileFacts, FileKind, ImageChange, VerifiedImage, VerifyRequest};
use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::amount::shown_size;
use super::{exit, table};

/// Digits of a content's digest that a table shows.
const DIGEST_LETTERS: usize = 12;

#[derive(Args)]
pub(super) struct ExportArguments {
    /// Name or digest
    image: String,
    /// File to write, or `-` for standard output
    #[arg(short, long, value_name = "FILE")]
    output: String,
}

#[derive(Args)]
pub(super) struct DiffArguments {
    /// The image that was
    before: String,
    /// The image that is
    after: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct VerifyArguments {
    /// Name or digest [default: all images]
    image: Option<String>,
    /// Compare unpacked layers with their archives too, file by file
    #[arg(long)]
    deep: bool,
    /// Only tell what is wrong; mend nothing
    #[arg(long)]
    look_only: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Writes the file system of an image as one tar.
pub(super) async fn export(client: &Client, arguments: &ExportArguments) -> Result<()> {
    if arguments.output == "-" && io::stdout().is_terminal() {
        bail!("a tar is nothing to read\nhint: name a file with --output, or send it into a pipe");
    }
    write(client, &arguments.image, &arguments.output).await
}

/// Writes the file system of an image to a file, which appears when it is whole, or to standard output for `-`.
pub(super) async fn write(client: &Client, image: &str, output: &str) -> Result<()> {
    if output == "-" {
        return pass_on(client, image, &mut io::stdout().lock()).await;
    }
    let path = Path::new(output);
    let draft = draft_of(path);
    let about = || format!("could not write {}", path.display());
    let mut file = std::fs::File::create(&draft).with_context(about)?;
    let written = pass_on(client, image, &mut file).await;
    let written =
        written.and_then(|()| file.sync_all().and_then(|()| std::fs::rename(&draft, path)).with_context(about));
    if written.is_err() {
        // A part of a tar helps nobody; should it not go, the cause is what counts.
        let _ = std::fs::remove_file(&draft);
    }
    written
}

/// Where a file is written before it is whole.
fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

/// Writes the file system of an image.
pub(super) async fn pass_on(client: &Client, image: &str, output: &mut impl Write) -> Result<()> {
    let mut download = client.export_image(image).await?;
    while let Some(bytes) = download.chunk().await.with_context(|| format!("could not export {image}"))? {
        output.write_all(&bytes)?;
    }
    Ok(output.flush()?)
}

/// Prints how two images differ.
pub(super) async fn diff(client: &Client, arguments: &DiffArguments) -> Result<()> {
    let diff = client.compare_images(&arguments.before, &arguments.after).await?;
    if arguments.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&diff)?)?;
        return Ok(());
    }
    let rows: Vec<Vec<String>> = diff.changes.iter().map(row).collect();
    table::print(&["CHANGE", "PATH", "BEFORE", "AFTER"], &rows)?;
    if diff.is_truncated {
        writeln!(io::stderr(), "there are more changes than can be told at once")?;
    }
    Ok(())
}

/// A change in words.
pub(super) fn row(change: &ImageChange) -> Vec<String> {
    let word = match change.change {
        ChangeKind::Added => "added",
        ChangeKind::Removed => "removed",
        ChangeKind::Changed => "changed",
    };
    let side = |facts: &Option<FileFacts>| facts.as_ref().map_or_else(|| "-".to_owned(), shown);
    vec![word.to_owned(), change.path.clone(), side(&change.before), side(&change.after)]
}

/// A file in a few words: kind and mode, owner, and what is in it.
fn shown(facts: &FileFacts) -> String {
    let kind = match facts.kind {
        FileKind::File => "file",
        FileKind::Folder => "folder",
        FileKind::Symlink => "link",
        FileKind::Pipe => "pipe",
        FileKind::Other => "other",
    };
    let mut words = format!("{kind} {} {}:{}", facts.mode, facts.uid, facts.gid);
    if let Some(sha256) = &facts.sha256 {
        words += &format!(" {} {}", shown_size(facts.size_bytes), sha256.get(..DIGEST_LETTERS).unwrap_or(sha256));
    }
    if let Some(target) = &facts.target {
        words += &format!(" -> {target}");
    }
    if !facts.attributes.is_empty() {
        words += &format!(" [{}]", facts.attributes.keys().cloned().collect::<Vec<_>>().join(", "));
    }
    words
}

/// Prints what is wrong with images; damage that is there now makes the exit code that of a failure.
pub(super) async fn verify(client: &Client, arguments: &VerifyArguments) -> Result<ExitCode> {
    let request =
        VerifyRequest { image: arguments.image.clone(), deep: arguments.deep, look_only: arguments.look_only };
    let verification = client.verify_images(&request).await?;
    let is_whole = verification.images.iter().all(|image| image.problems.is_empty());
    if arguments.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&verification)?)?;
    } else {
        let mut stdout = io::stdout().lock();
        verification.images.iter().try_for_each(|image| told(image, &mut stdout))?;
        let (blobs, layers) = (verification.blobs, verification.layers);
        let size = shown_size(verification.bytes);
        writeln!(stdout, "{} images, {blobs} blobs ({size}), {layers} layers", verification.images.len())?;
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::from(exit::DAMAGED) })
}

fn told(image: &VerifiedImage, output: &mut impl Write) -> io::Result<()> {
    let name = if image.references.is_empty() { &image.digest } else { &image.references.join(", ") };
    let word = match (image.problems.is_empty(), image.is_usable) {
        (true, _) => "ok",
        (false, true) => "mended",
        (false, false) => "damaged",
    };
    writeln!(output, "{word}  {}", table::plain(name))?;
    for problem in &image.problems {
        writeln!(output, "  {}", table::plain(problem))?;
    }
    for mended in &image.mended {
        writeln!(output, "  mended: {}", table::plain(mended))?;
    }
    Ok(())
}
