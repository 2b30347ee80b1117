//! Images as archives: import, load and save.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use ampoule_client::Client;
use ampoule_client::client::{Content, Download};
use ampoule_client::types::Image;
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use super::progress::{Watched, bar};
use crate::cli::amount::shown_size;
use crate::cli::{bundle, table};

#[derive(Args)]
pub(in crate::cli) struct ImportArguments {
    /// Archive (plain, gzip or zstd), folder, or `-` for standard input
    source: String,
    /// Name of the image; an archive that brings its own names needs none
    #[arg(short, long, value_name = "REF")]
    name: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(in crate::cli) struct LoadArguments {
    /// Archive (plain, gzip or zstd), folder with an OCI layout, or `-` for standard input
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    input: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(in crate::cli) struct SaveArguments {
    /// Names or digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Where to write: a file, which appears when it is whole, or `-` for standard output
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    output: String,
    /// What to write
    #[arg(long, value_enum, default_value_t = SaveFormat::DockerArchive)]
    format: SaveFormat,
    /// Compress the archive
    #[arg(long, value_enum)]
    compress: Option<SaveCompression>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum SaveFormat {
    /// As `docker save` writes it
    DockerArchive,
    /// An OCI image layout
    OciArchive,
}

#[derive(Clone, Copy, ValueEnum)]
enum SaveCompression {
    Gzip,
    Zstd,
}

/// Makes an image of an archive.
pub(super) async fn import(client: &Client, arguments: &ImportArguments) -> Result<()> {
    let archive = open(&arguments.source, "importing").await?;
    let imported = client.import_image(arguments.name.as_deref(), archive).await?;
    if arguments.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&imported)?)?;
        return Ok(());
    }
    print(&imported.images)
}

/// Loads the images of an archive.
pub(super) async fn load(client: &Client, arguments: &LoadArguments) -> Result<()> {
    if arguments.input == "-" && io::stdin().is_terminal() {
        bail!("standard input is a terminal; name an archive with --input, or redirect one to here");
    }
    let archive = open(&arguments.input, "loading").await?;
    let loaded = client.load_images(archive).await?;
    if arguments.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&loaded)?)?;
        return Ok(());
    }
    print(&loaded.images)?;
    for left_out in &loaded.left_out {
        let what = left_out.reference.as_deref().or(left_out.digest.as_deref()).unwrap_or("an image");
        let platform = table::plain(&left_out.platform);
        writeln!(io::stderr(), "ampoule: left out {} for {platform}", table::plain(what))?;
    }
    Ok(())
}

fn print(images: &[Image]) -> Result<()> {
    for image in images {
        let name = image.reference.as_deref().unwrap_or("(without a name)");
        writeln!(io::stdout(), "{}  {}  {}", table::plain(name), image.digest, shown_size(image.size_bytes))?;
    }
    let skipped = images.iter().find_map(|image| image.skipped).unwrap_or_default();
    if skipped.devices > 0 {
        writeln!(io::stderr(), "ampoule: left out {} device nodes; a sandbox has its own /dev", skipped.devices)?;
    }
    if skipped.xattrs > 0 {
        let what = "extended attributes that belong to a host or that their files cannot have";
        writeln!(io::stderr(), "ampoule: left out {} {what}", skipped.xattrs)?;
    }
    Ok(())
}

async fn open(source: &str, what: &'static str) -> Result<Content> {
    if source == "-" {
        let reader = Watched { input: tokio::io::stdin(), bar: bar(what, None) };
        return Ok(Content::Reader { reader: Box::new(reader), length: None });
    }
    let path = Path::new(source);
    let about = || format!("could not open {source}");
    let metadata = fs::metadata(path).with_context(about)?;
    if metadata.is_dir() {
        return Ok(bundle::folder(PathBuf::from(path)));
    }
    let file = tokio::fs::File::open(path).await.with_context(about)?;
    // A pipe or a device has no length that is known ahead.
    let length = metadata.is_file().then_some(metadata.len());
    Ok(Content::Reader { reader: Box::new(Watched { input: file, bar: bar(what, length) }), length })
}

/// Saves images as one archive.
pub(super) async fn save(client: &Client, arguments: &SaveArguments) -> Result<()> {
    if arguments.output == "-" && io::stdout().is_terminal() {
        bail!("standard output is a terminal; name a file with --output, or redirect it");
    }
    let compress = arguments.compress.map(|compress| match compress {
        SaveCompression::Gzip => "gzip",
        SaveCompression::Zstd => "zstd",
    });
    write(client, &arguments.images, arguments.format, compress, &arguments.output).await
}

/// Writes images as one archive to a file, or to standard output for `-`.
pub(in crate::cli) async fn write(
    client: &Client,
    images: &[String],
    format: SaveFormat,
    compress: Option<&str>,
    output: &str,
) -> Result<()> {
    let format = match format {
        SaveFormat::DockerArchive => "docker-archive",
        SaveFormat::OciArchive => "oci-archive",
    };
    let download = client.save_images(images, format, compress).await?;
    if output == "-" {
        return receive(download, io::stdout().lock()).await;
    }
    let path = Path::new(output);
    // A device or a pipe is written to as it is; a file appears when it is whole.
    if fs::metadata(path).is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_char_device() || kind.is_block_device() || kind.is_fifo()
    }) {
        let file = fs::File::options().write(true).open(path);
        return receive(download, file.with_context(|| format!("could not open {}", path.display()))?).await;
    }
    let draft = Draft::of(path);
    let file = fs::File::create(&draft.0).with_context(|| format!("could not make {}", draft.0.display()))?;
    receive(download, &file).await.with_context(|| format!("could not write {}", path.display()))?;
    file.sync_all().with_context(|| format!("could not write {}", path.display()))?;
    fs::rename(&draft.0, path).with_context(|| format!("could not rename {}", path.display()))
}

async fn receive(mut download: Download, mut output: impl Write) -> Result<()> {
    let bar = bar("saving", download.length());
    while let Some(bytes) = download.chunk().await? {
        output.write_all(&bytes)?;
        bar.inc(bytes.len() as u64);
    }
    output.flush()?;
    bar.finish_and_clear();
    Ok(())
}

/// A file that is not whole yet; gone unless it was renamed.
struct Draft(PathBuf);

impl Draft {
    fn of(path: &Path) -> Draft {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        Draft(name.into())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It is not there when it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}
