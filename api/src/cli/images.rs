//! `ampoule image`: pulling, pushing, bringing images in, listing and removing them.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ampoule_client::Client;
use ampoule_client::client::Content;
use ampoule_client::types::Image;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use super::amount::shown_size;
use super::{bundle, table, transfers};

/// Letters of a digest that a table shows: `sha256:` and twelve digits.
const DIGEST_LETTERS: usize = 19;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Pull an image from a registry
    #[command(after_help = "Logins are those of `docker login`: ~/.docker/config.json and its helpers.\n\n\
        Examples:\n  ampoule image pull alpine\n  ampoule image pull ghcr.io/user/app:1 --quiet\n  \
        ampoule image pull host:5000/x@sha256:...")]
    Pull(transfers::PullArguments),
    /// Push an image to a registry
    #[command(after_help = "Logins are those of `docker login`: ~/.docker/config.json and its helpers.\n\n\
        Examples:\n  ampoule image push host:5000/app:1\n  ampoule image push debian:12 ghcr.io/user/debian:12")]
    Push(transfers::PushArguments),
    /// Import a root file system, what `docker save` writes, or an OCI layout
    #[command(after_help = "Examples:\n  ampoule image import rootfs.tar.zst --name debian:12\n  \
        docker save busybox | ampoule image import -\n  \
        mmdebstrap --variant=minbase bookworm - | ampoule image import - --name debian:12\n  \
        ampoule image import ./oci-layout-folder")]
    Import(ImportArguments),
    /// List images
    Ls {
        /// Print one JSON document
        #[arg(long, conflicts_with = "quiet")]
        json: bool,
        /// Print digests only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove images that no job needs
    Rm {
        /// Names or digests
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Show an image with its config
    Inspect {
        /// Name or digest
        image: String,
    },
}

#[derive(Args)]
pub(super) struct ImportArguments {
    /// Archive (plain, gzip or zstd), folder, or `-` for standard input
    source: String,
    /// Name of the image; an archive that brings its own names needs none
    #[arg(short, long, value_name = "REF")]
    name: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Does one of the commands.
pub(super) async fn run(client: &Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Pull(arguments) => transfers::pull(client, arguments).await?,
        Command::Push(arguments) => transfers::push(client, arguments).await?,
        Command::Import(arguments) => import(client, &arguments).await?,
        Command::Ls { json, quiet } => list(client, json, quiet).await?,
        Command::Rm { images } => remove(client, &images).await?,
        Command::Inspect { image } => {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&client.image(&image).await?)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn import(client: &Client, arguments: &ImportArguments) -> Result<()> {
    let archive = open(&arguments.source).await?;
    let imported = client.import_image(arguments.name.as_deref(), archive).await?;
    if arguments.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&imported)?)?;
        return Ok(());
    }
    for image in &imported.images {
        let name = image.reference.as_deref().unwrap_or("(without a name)");
        writeln!(io::stdout(), "{}  {}  {}", table::plain(name), image.digest, shown_size(image.size_bytes))?;
    }
    Ok(())
}

async fn open(source: &str) -> Result<Content> {
    if source == "-" {
        return Ok(Content::Reader { reader: Box::new(tokio::io::stdin()), length: None });
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
    Ok(Content::Reader { reader: Box::new(file), length })
}

async fn list(client: &Client, json: bool, quiet: bool) -> Result<()> {
    let list = client.images().await?;
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&list)?)?;
    } else if quiet {
        let mut stdout = io::stdout().lock();
        list.images.iter().try_for_each(|image| writeln!(stdout, "{}", image.digest))?;
    } else {
        let rows: Vec<Vec<String>> = list.images.iter().map(row).collect();
        table::print(&["IMAGE", "DIGEST", "LAYERS", "SIZE", "CREATED"], &rows)?;
    }
    Ok(())
}

fn row(image: &Image) -> Vec<String> {
    vec![
        image.reference.clone().unwrap_or_else(|| "-".to_owned()),
        image.digest.get(..DIGEST_LETTERS).unwrap_or(&image.digest).to_owned(),
        image.layers.to_string(),
        shown_size(image.size_bytes),
        image.created.map_or_else(|| "-".to_owned(), |created| created.strftime("%Y-%m-%d").to_string()),
    ]
}

async fn remove(client: &Client, images: &[String]) -> Result<()> {
    for image in images {
        let removed = client.remove_image(image).await.with_context(|| format!("could not remove {image}"))?;
        for name in &removed.untagged {
            writeln!(io::stdout(), "untagged {}", table::plain(name))?;
        }
        for digest in &removed.removed {
            writeln!(io::stdout(), "removed {digest}")?;
        }
        writeln!(io::stdout(), "freed {}", shown_size(removed.freed_bytes))?;
    }
    Ok(())
}
