//! Where the result of a build goes besides the service's store: into archives, into a folder, to registries.

use std::io::{self, IsTerminal, Seek, Write};
use std::path::PathBuf;

use ampoule_client::Client;
use ampoule_client::types::BuildResult;
use anyhow::{Context as _, Result, bail};

use super::super::images::archives::{self, SaveFormat};
use super::super::{transfers, trees};
use super::unpack::unpack;

/// One of the places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// The store; with `push`, also the registries that its names say.
    Image { push: bool },
    /// An archive of the image; standard output without a file.
    Archive(SaveFormat, Option<PathBuf>),
    /// The files of the image as one tar; standard output without a file.
    Tar(Option<PathBuf>),
    /// The files of the image in a folder.
    Local(PathBuf),
}

impl Output {
    /// Reads `type=TYPE[,dest=PATH]`, a path of a folder, or `-` for a tar on standard output.
    pub(super) fn parse(text: &str) -> Result<Output, String> {
        if text == "-" {
            return Ok(Output::Tar(None));
        }
        if !text.contains('=') {
            return Ok(Output::Local(PathBuf::from(text)));
        }
        let (mut kind, mut dest, mut push) = (None, None, false);
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("type", value)) => kind = Some(value),
                Some(("dest", "-")) => dest = None,
                Some(("dest", value)) if !value.is_empty() => dest = Some(PathBuf::from(value)),
                Some(("push", value @ ("true" | "false"))) => push = value == "true",
                _ => return Err(format!("`{field}` is neither type=…, dest=PATH nor push=true")),
            }
        }
        let output = match (kind, dest) {
            (Some("image"), None) => Output::Image { push },
            (Some("registry"), None) => return Ok(Output::Image { push: true }),
            (Some("image" | "registry"), Some(_)) => return Err("an image has names, and no dest".to_owned()),
            (Some("oci"), dest) => Output::Archive(SaveFormat::OciArchive, dest),
            (Some("docker"), dest) => Output::Archive(SaveFormat::DockerArchive, dest),
            (Some("tar"), dest) => Output::Tar(dest),
            (Some("local"), Some(folder)) => Output::Local(folder),
            (Some("local"), None) => return Err("type=local wants dest=FOLDER".to_owned()),
            (Some(kind), _) => return Err(format!("`{kind}` is none of image, registry, oci, docker, tar and local")),
            (None, _) => return Err("it wants type=TYPE".to_owned()),
        };
        match output {
            Output::Image { .. } => Ok(output),
            _ if push => Err("only an image can be pushed".to_owned()),
            _ => Ok(output),
        }
    }

    /// Whether it goes to standard output.
    pub(super) fn is_stdout(&self) -> bool {
        matches!(self, Output::Archive(_, None) | Output::Tar(None))
    }
}

/// What cannot be meant, before anything is built.
pub(super) fn check(outputs: &[Output], tags: &[String]) -> Result<()> {
    if tags.is_empty() && outputs.contains(&Output::Image { push: true }) {
        bail!("what is pushed needs a name\nhint: give it with --tag");
    }
    match outputs.iter().filter(|output| output.is_stdout()).count() {
        0 => Ok(()),
        1 if io::stdout().is_terminal() => {
            bail!("standard output is a terminal\nhint: name a file with dest=FILE, or redirect it")
        }
        1 => Ok(()),
        _ => bail!("there is one standard output, and several outputs go there"),
    }
}

/// Brings what was built to a place.
pub(super) async fn bring(client: &Client, output: &Output, result: &BuildResult, tags: &[String]) -> Result<()> {
    let digest = &result.image.digest;
    let path = |dest: &Option<PathBuf>| dest.as_ref().map_or_else(|| "-".into(), |dest| dest.display().to_string());
    match output {
        Output::Image { push: false } => Ok(()),
        Output::Image { push: true } => {
            for tag in tags {
                transfers::push_quietly(client, tag).await.with_context(|| format!("could not push {tag}"))?;
            }
            Ok(())
        }
        Output::Archive(format, dest) => {
            let images = if tags.is_empty() { std::slice::from_ref(digest) } else { tags };
            archives::write(client, images, *format, None, &path(dest)).await
        }
        Output::Tar(dest) => trees::write(client, digest, &path(dest)).await,
        Output::Local(folder) => {
            let mut tar = tempfile::tempfile().context("could not make a temporary file")?;
            trees::pass_on(client, digest, &mut tar).await?;
            tar.rewind()?;
            let left_out = unpack(tar, folder)?;
            if left_out > 0 {
                writeln!(io::stderr(), "ampoule: left out {left_out} devices and pipes")?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_read_as_docker_reads_them() {
        let archive = |format, dest: Option<&str>| Output::Archive(format, dest.map(PathBuf::from));
        for (text, expected) in [
            ("out", Output::Local("out".into())),
            ("-", Output::Tar(None)),
            ("type=local,dest=a/b", Output::Local("a/b".into())),
            ("type=tar,dest=-", Output::Tar(None)),
            ("dest=x.tar,type=tar", Output::Tar(Some("x.tar".into()))),
            ("type=oci,dest=x", archive(SaveFormat::OciArchive, Some("x"))),
            ("type=docker", archive(SaveFormat::DockerArchive, None)),
            ("type=image", Output::Image { push: false }),
            ("type=image,push=true", Output::Image { push: true }),
            ("type=registry", Output::Image { push: true }),
        ] {
            assert_eq!(Output::parse(text), Ok(expected), "{text}");
        }
        for text in ["type=local", "type=oci,push=true", "dest=x", "type=x", "type=image,dest=x", "type=tar,color=red"]
        {
            Output::parse(text).expect_err(text);
        }
    }
}
