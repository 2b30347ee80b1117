//! Artifacts of a job into a folder of this machine. The job chose their names: each is opened beneath the folder, by
//! descriptor, through no symbolic link.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use ampoule_client::Client;
use ampoule_client::types::Job;
use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;

use super::table::plain;

/// Folders on the way to an artifact at most.
const DEPTH_MAX: usize = 64;

/// Downloads every artifact of a job into `folder`, which is made; paths are kept, below the job's working directory
/// without it. Returns how many there were.
pub(super) async fn artifacts(client: &Client, job: &Job, folder: &Path) -> Result<usize> {
    fs::create_dir_all(folder).with_context(|| format!("could not make the folder {}", folder.display()))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(folder, flags, Mode::empty()).with_context(|| format!("could not open {}", folder.display()))?;
    let cwd = job.spec.as_ref().map_or("/", |spec| spec.cwd.as_str());
    let mut kept = 0;
    for artifact in &job.artifacts {
        if let Some(why) = &artifact.left_out {
            let path = plain(&artifact.path);
            writeln!(io::stderr(), "ampoule: {path} was left out: {}", plain(why))?;
            continue;
        }
        let path = Path::new(&artifact.path);
        let inside = path.strip_prefix(cwd).unwrap_or(path);
        let mut file = create_beneath(root.as_fd(), inside)
            .with_context(|| format!("could not write {} in {}", plain(&artifact.path), folder.display()))?;
        let mut download = client.artifact(&job.id, &artifact.path).await?;
        while let Some(bytes) = download.chunk().await? {
            file.write_all(&bytes).with_context(|| format!("could not write to {}", folder.display()))?;
        }
        kept += 1;
    }
    Ok(kept)
}

/// Makes a file and the folders above it, all beneath `root`. An existing file is overwritten, an existing link
/// is an error.
fn create_beneath(root: BorrowedFd<'_>, path: &Path) -> Result<File> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => return Err(anyhow!("the path leads out of the folder")),
        }
    }
    let Some((last, folders)) = names.split_last() else { return Err(anyhow!("the path is empty")) };
    if folders.len() > DEPTH_MAX {
        return Err(anyhow!("the path is deeper than {DEPTH_MAX} folders"));
    }
    let mut parent: OwnedFd = root.try_clone_to_owned()?;
    for name in folders {
        match mkdirat(&parent, *name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        parent = beneath(&parent, name.as_ref(), OFlags::PATH | OFlags::DIRECTORY)?;
    }
    Ok(beneath(&parent, last.as_ref(), OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?.into())
}

fn beneath(parent: &OwnedFd, name: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o666) } else { Mode::empty() };
    openat2(parent, name, flags | OFlags::CLOEXEC, mode, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(folder: &Path, path: &str) -> Result<File> {
        let root = open(folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("the folder");
        create_beneath(root.as_fd(), Path::new(path))
    }

    #[test]
    fn artifacts_are_made_with_their_folders_and_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        create(folder.path(), "/a/b/c.xml").expect("made").write_all(b"long").expect("written");
        create(folder.path(), "a/b/c.xml").expect("made again").write_all(b"x").expect("written");
        assert_eq!(fs::read(folder.path().join("a/b/c.xml")).expect("read"), b"x");
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let outside = tempfile::tempdir().expect("a folder");
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).expect("a link");
        std::os::unix::fs::symlink(outside.path().join("file"), folder.path().join("file")).expect("a link");
        for path in ["../x", "a/../../x", "link/x", "file", "/", ""] {
            assert!(create(folder.path(), path).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(outside.path()).expect("a folder").count(), 0);
    }
}
