//! `ampoule image`: pulling and pushing, bringing images in and out, naming, looking at and removing them.

use std::io::{self, Write};
use std::process::ExitCode;

use ampoule_client::Client;
use ampoule_client::client::{ImageQuery, PruneQuery};
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

use super::amount::shown_size;
use super::{table, transfers, trees};

pub(super) mod archives;
mod progress;
mod prune;
mod show;

pub(super) use prune::confirmed;

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
    /// Make an image of a root file system; takes image archives as well
    #[command(after_help = "Examples:\n  ampoule image import rootfs.tar.zst --name debian:12\n  \
        mmdebstrap --variant=minbase bookworm - | ampoule image import - --name debian:12\n  \
        ampoule image import ./oci-layout-folder")]
    Import(archives::ImportArguments),
    /// Load the images of an archive: what `docker save` or `ampoule image save` writes, or an OCI layout
    #[command(after_help = "Examples:\n  docker save busybox | ampoule image load\n  \
        ampoule image load --input images.tar.zst\n\nOf an image for several platforms this machine's is taken.")]
    Load(archives::LoadArguments),
    /// Save images as one archive that docker, podman and skopeo read
    #[command(after_help = "Examples:\n  ampoule image save debian:12 busybox --output images.tar\n  \
        ampoule image save busybox --compress zstd > busybox.tar.zst\n  \
        ampoule image save busybox | docker load")]
    Save(archives::SaveArguments),
    /// List images
    #[command(after_help = "Filters:\n  reference=PATTERN  names that fit, as in `debian:*` or `*/app`\n  \
        dangling=true|false  those without a name, or with one\n  label=KEY[=VALUE]  those with a label\n  \
        before=IMAGE, since=IMAGE  those made before or after another\n  \
        until=TIME  those made before a time, or so long ago: `2026-01-31T00:00:00Z`, `24h`")]
    Ls(ListArguments),
    /// Give an image one more name
    #[command(after_help = "Example:\n  ampoule image tag debian:12 registry.example/base:today")]
    Tag {
        /// Name or digest
        source: String,
        /// The name that it gets
        name: String,
    },
    /// Remove images that nobody uses
    Rm(RemoveArguments),
    /// Let go of images that nobody needs
    #[command(after_help = "Examples:\n  ampoule image prune                      those without a name\n  \
        ampoule image prune --all --dry-run      show what would go if no name were kept\n  \
        ampoule image prune --all --force --filter until=240h --filter 'label!=keep'")]
    Prune(prune::Arguments),
    /// Show what images take on disk: shared with others, and alone
    Du {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show the steps that made an image
    History {
        /// Name or digest
        image: String,
        /// Show whole commands
        #[arg(long)]
        no_trunc: bool,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of an image: config, layers, history
    Inspect {
        /// Name or digest
        image: String,
    },
    /// Write the file system of an image as one flat tar
    #[command(after_help = "Examples:\n  ampoule image export debian:12 -o rootfs.tar\n  \
        ampoule image export busybox -o - | tar -t\n  \
        ampoule image export busybox -o - | docker import - busybox")]
    Export(trees::ExportArguments),
    /// Show how the file systems of two images differ
    Diff(trees::DiffArguments),
    /// Read images again and tell what is wrong with them; returns 1 for damage
    Verify(trees::VerifyArguments),
}

#[derive(Args)]
pub(super) struct ListArguments {
    /// Only those that fit; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Print one JSON document
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print digests only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args)]
pub(super) struct RemoveArguments {
    /// Names or digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Take all names of an image, even when it is in use; what jobs need stays until `prune`
    #[arg(short, long)]
    force: bool,
}

/// Does one of the commands.
pub(super) async fn run(client: &Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Import(arguments) => archives::import(client, &arguments).await?,
        Command::Load(arguments) => archives::load(client, &arguments).await?,
        Command::Save(arguments) => archives::save(client, &arguments).await?,
        Command::Ls(arguments) => {
            let query = list_query(&arguments.filter)?;
            show::list(client, query, arguments.json, arguments.quiet).await?;
        }
        Command::Tag { source, name } => {
            let tagged = client.tag_image(&source, &name).await?;
            if let Some(digest) = tagged.taken_from {
                writeln!(io::stderr(), "ampoule: {digest} had this name, and has it no more")?;
            }
        }
        Command::Rm(arguments) => remove(client, &arguments).await?,
        Command::Prune(arguments) => prune::run(client, &arguments).await?,
        Command::Du { json } => show::usage(client, json).await?,
        Command::History { image, no_trunc, json } => show::history(client, &image, no_trunc, json).await?,
        Command::Export(arguments) => trees::export(client, &arguments).await?,
        Command::Diff(arguments) => trees::diff(client, &arguments).await?,
        Command::Verify(arguments) => return trees::verify(client, &arguments).await,
        Command::Pull(arguments) => transfers::pull(client, arguments).await?,
        Command::Push(arguments) => transfers::push(client, arguments).await?,
        Command::Inspect { image } => {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&client.image(&image).await?)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list_query(filters: &[String]) -> Result<ImageQuery> {
    let mut query = ImageQuery::default();
    for filter in filters {
        let Some((key, value)) = filter.split_once('=') else { bail!("`{filter}` is no filter; write key=value") };
        let value = value.to_owned();
        match key {
            "reference" => query.references.push(value),
            "label" => query.labels.push(value),
            "dangling" => query.dangling = Some(value.parse().context("dangling is `true` or `false`")?),
            "before" => query.before = Some(value),
            "since" => query.since = Some(value),
            "until" => query.until = Some(value),
            _ => bail!("there is no filter `{key}`; `ampoule image ls --help` shows those that are"),
        }
    }
    Ok(query)
}

fn prune_query(filters: &[String], all: bool) -> Result<PruneQuery> {
    let mut query = PruneQuery { all, ..PruneQuery::default() };
    for filter in filters {
        // `label!=key=value` has its first equals sign in the operator.
        if let Some(label) = filter.strip_prefix("label!=") {
            query.without_labels.push(label.to_owned());
        } else if let Some(label) = filter.strip_prefix("label=") {
            query.labels.push(label.to_owned());
        } else if let Some(until) = filter.strip_prefix("until=") {
            query.until = Some(until.to_owned());
        } else {
            bail!("`{filter}` is no filter of prune; write until=24h, label=key=value or label!=key");
        }
    }
    Ok(query)
}

async fn remove(client: &Client, arguments: &RemoveArguments) -> Result<()> {
    for image in &arguments.images {
        let removed = client.remove_image(image, arguments.force).await;
        let removed = removed.with_context(|| format!("could not remove {image}"))?;
        for name in &removed.untagged {
            writeln!(io::stdout(), "untagged {}", table::plain(name))?;
        }
        for digest in &removed.removed {
            writeln!(io::stdout(), "removed {digest}")?;
        }
        writeln!(io::stdout(), "freed {}", shown_size(removed.freed_bytes + removed.freed_unpacked_bytes))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn filters_are_read_as_docker_writes_them() {
        let query = list_query(&texts(&["reference=a*", "label=x=y", "dangling=true", "until=24h"])).expect("filters");
        assert_eq!((query.references, query.labels), (texts(&["a*"]), texts(&["x=y"])));
        assert_eq!((query.dangling, query.until.as_deref()), (Some(true), Some("24h")));
        let query = prune_query(&texts(&["label!=keep", "label!=a=b", "label=c", "until=1h"]), true).expect("filters");
        assert_eq!((query.without_labels, query.labels), (texts(&["keep", "a=b"]), texts(&["c"])));
        assert!(query.all && !query.apply);
        for wrong in ["nothing", "colour=red", "dangling=maybe"] {
            assert!(list_query(&texts(&[wrong])).is_err(), "{wrong}");
            assert!(prune_query(&texts(&[wrong]), false).is_err(), "{wrong}");
        }
    }
}
