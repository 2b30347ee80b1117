//! COPY, ADD and WORKDIR: files of a context, of a stage or of an image are put on top of what a stage has so far.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe;
use tokio::task::spawn_blocking;

use super::stage::Tree;
use super::{Build, Problem, Site, parse_exclude};
use crate::builder::context::{Context, Picked};
use crate::builder::fetch::Download;
use crate::builder::plan::{CopyAction, CopyFrom, Origin};
use crate::image::archive;
use crate::image::compression::{Bounds, Decompressed};
use crate::image::store::BuiltLayer;
use crate::runtime::Unpacked;
use crate::spec::{PlaceOrder, StepTerms, Wanted};
use crate::sys::in_one_line;

/// Mode of a file that stands in the Dockerfile.
const INLINE_MODE: u32 = 0o644;
/// Mode of a file that was downloaded, as Docker has it.
const DOWNLOADED_MODE: u32 = 0o600;
/// Stands for the name of a download that has none, where the destination gives it one.
const UNNAMED: &str = "download";
/// How much of a file is looked at to tell whether it is an archive.
const ARCHIVE_HEAD_BYTES: usize = 512;

/// One thing that goes into the tar of a copy, found before anything is started.
enum Part {
    Picked { picked: Picked, unpacks: bool },
    Inline { name: String, content: String },
    Downloaded { download: Arc<Download>, unpacks: bool },
}

impl Site {
    pub(super) async fn copy(&self, copy: &CopyAction, tree: &Tree) -> Result<BuiltLayer, Problem> {
        let order = PlaceOrder {
            destination: copy.destination.clone(),
            is_folder: copy.destination.ends_with('/') || copy.sources.len() > 1,
            owner: copy.chown.clone(),
            mode: copy.chmod.as_ref().map(ToString::to_string),
            terms: self.terms(),
        };
        match &copy.from {
            Origin::Context | Origin::Named(_) => {
                let name = match &copy.from {
                    Origin::Named(name) => Some(name.as_str()),
                    _ => None,
                };
                let context = Arc::clone(self.build.contexts.find(name)?);
                let parts = parts_of(&context, copy, &self.build)?;
                let parents = copy.parents;
                self.place(tree, order, Source::Files(Box::new(move |output| write(&context, &parts, parents, output))))
                    .await
            }
            Origin::Stage(stage) => {
                let other = self.wait_for(*stage).await?;
                self.place(tree, order, Source::Tree(other, wanted_of(copy)?)).await
            }
            Origin::Image(image) => {
                let layers = self.workshop.foundation(self.build.image(image)?)?.layers;
                let other = Arc::new(Tree { layers, ..Tree::default() });
                self.place(tree, order, Source::Tree(other, wanted_of(copy)?)).await
            }
        }
    }

    /// Makes a folder; no layer when it is there.
    pub(super) async fn make_folder(&self, path: &str, user: &str, tree: &Tree) -> Result<Option<BuiltLayer>, Problem> {
        let order = PlaceOrder {
            destination: path.to_owned(),
            is_folder: true,
            owner: Some(user.to_owned()).filter(|user| !user.is_empty()),
            mode: None,
            terms: self.terms(),
        };
        let nothing = Source::Files(Box::new(|output: File| tar::Builder::new(output).finish().map_err(writing)));
        let (arrived, made) = self.start(tree, order, nothing).await?;
        let has_changed = made.entries > 0;
        // One of nothing is on disk all the same, and goes with the build.
        let layer = self.workshop.keep(arrived, made).await?;
        Ok(has_changed.then_some(layer))
    }

    /// The files of a named context as the first layer of a stage.
    pub(super) async fn copy_context(&self, name: &str) -> Result<BuiltLayer, Problem> {
        Ok(self.place_part(Some(name), "/").await?.0)
    }

    /// A file or a folder of a context as a layer of its own, and its path in there.
    pub(super) async fn place_part(
        &self,
        context: Option<&str>,
        source: &str,
    ) -> Result<(BuiltLayer, &'static str), Problem> {
        let context = Arc::clone(self.build.contexts.find(context)?);
        let picked = context.pick(source, &parse_exclude(&[])?)?;
        let [picked] = <[Picked; 1]>::try_from(picked).map_err(|all| {
            Problem::Unsupported(format!("`{source}` stands for {} files, where one or a folder is wanted", all.len()))
        })?;
        let is_folder = picked.is_folder;
        let path = if is_folder { "/" } else { "/file" };
        let order =
            PlaceOrder { destination: path.to_owned(), is_folder, terms: self.terms(), ..PlaceOrder::default() };
        let parts = [Part::Picked { picked, unpacks: false }];
        let files = Source::Files(Box::new(move |output| write(&context, &parts, false, output)));
        Ok((self.place(&Tree::default(), order, files).await?, path))
    }

    fn terms(&self) -> StepTerms {
        StepTerms { epoch: self.build.epoch }
    }

    async fn place(&self, tree: &Tree, order: PlaceOrder, source: Source) -> Result<BuiltLayer, Problem> {
        let (arrived, made) = self.start(tree, order, source).await?;
        Ok(self.workshop.keep(arrived, made).await?)
    }

    async fn start(
        &self,
        tree: &Tree,
        order: PlaceOrder,
        source: Source,
    ) -> Result<(crate::image::store::ArrivedLayer, Unpacked), Problem> {
        let _slot = self.copies.acquire().await;
        let (files, input) = new_pipe()?;
        let (tar, output) = new_pipe()?;
        let tar = pipe::Receiver::from_owned_fd(tar)
            .map_err(|source| Problem::System { action: "wait on a pipe", source })?;
        let runtime = self.workshop.runtime();
        let writing = async {
            match source {
                Source::Files(write) => {
                    let written = spawn_blocking(move || write(File::from(input))).await;
                    written.unwrap_or_else(|_| Err(Problem::Missing("the files were not read".to_owned())))
                }
                Source::Tree(other, wanted) if other.layers.is_empty() => {
                    drop(input);
                    Err(Problem::Missing(format!(
                        "`{}` is not there: the stage has no files",
                        wanted.sources.join(" ")
                    )))
                }
                Source::Tree(other, wanted) => Ok(runtime.select_files(other.mounted(), wanted, input).await?),
            }
        };
        let placing = runtime.place_files(tree.mounted(), order, files, output);
        let (written, made, arrived) = tokio::join!(writing, placing, self.workshop.receive(tar));
        match (written, made) {
            (Ok(()), made) => Ok((arrived?, made?)),
            // A reader that hung up has a reason of its own, which says more.
            (Err(Problem::System { source, .. }), Err(error)) if source.kind() == io::ErrorKind::BrokenPipe => {
                Err(error.into())
            }
            (Err(problem), made) => {
                if let (Ok(made), Ok(arrived)) = (made, arrived) {
                    // A layer of half the files, which goes with the build.
                    let _ = self.workshop.keep(arrived, made).await;
                }
                Err(problem)
            }
        }
    }
}

/// Writes the tar of a copy to a pipe.
type WriteFiles = Box<dyn FnOnce(File) -> Result<(), Problem> + Send>;

/// Where the files of a copy come from.
enum Source {
    Files(WriteFiles),
    Tree(Arc<Tree>, Wanted),
}

fn new_pipe() -> Result<(OwnedFd, OwnedFd), Problem> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| Problem::System { action: "make a pipe", source: error.into() })
}

fn writing(source: io::Error) -> Problem {
    Problem::System { action: "pass files on", source }
}

fn wanted_of(copy: &CopyAction) -> Result<Wanted, Problem> {
    let sources = copy.sources.iter().map(|source| match source {
        CopyFrom::Path(path) => Ok(path.clone()),
        other => Err(unsupported(other)),
    });
    let sources = sources.collect::<Result<_, _>>()?;
    Ok(Wanted { sources, exclude: copy.exclude.clone(), parents: copy.parents })
}

fn unsupported(source: &CopyFrom) -> Problem {
    Problem::Unsupported(match source {
        CopyFrom::Url(url) => format!("`{url}` cannot be taken from there"),
        CopyFrom::Git { remote, .. } => {
            format!("`ADD {remote}` cannot be done yet\nhint: put the repository into the context")
        }
        CopyFrom::Path(path) => format!("`{path}` cannot be copied from there"),
        CopyFrom::Inline { name, .. } => format!("`{name}` stands in the Dockerfile and in no stage"),
    })
}

fn parts_of(context: &Context, copy: &CopyAction, build: &Build) -> Result<Vec<Part>, Problem> {
    let exclude = parse_exclude(&copy.exclude)?;
    let mut parts = Vec::new();
    for source in &copy.sources {
        match source {
            CopyFrom::Path(path) => {
                for picked in context.pick(path, &exclude)? {
                    let unpacks = copy.is_add && copy.unpack != Some(false) && is_archive(context, &picked)?;
                    parts.push(Part::Picked { picked, unpacks });
                }
            }
            CopyFrom::Inline { name, content } => {
                parts.push(Part::Inline { name: name.clone(), content: content.clone() });
            }
            CopyFrom::Url(url) => {
                let download = Arc::clone(build.download(url)?);
                if download.name.is_none() && copy.destination.ends_with('/') {
                    let problem = format!("`{url}` has no name for a file\nhint: write the name into the destination");
                    return Err(Problem::Unsupported(problem));
                }
                parts.push(Part::Downloaded { download, unpacks: copy.unpack == Some(true) });
            }
            CopyFrom::Git { .. } => return Err(unsupported(source)),
        }
    }
    Ok(parts)
}

/// Whether a file is an archive that ADD unpacks: told by looking, as Docker does it, not by its name.
fn is_archive(context: &Context, picked: &Picked) -> Result<bool, Problem> {
    if picked.is_folder {
        return Ok(false);
    }
    let content = context.content(&picked.root)?;
    // What cannot be decompressed is a file like any other.
    let Ok(plain) = Decompressed::new(content, Bounds::default()) else { return Ok(false) };
    let mut head = Vec::new();
    if plain.take(ARCHIVE_HEAD_BYTES as u64).read_to_end(&mut head).is_err() || head.len() < ARCHIVE_HEAD_BYTES {
        return Ok(false);
    }
    Ok(matches!(archive::Reader::new(head.as_slice(), archive::Limits::default()).next_entry(), Ok(Some(_))))
}

/// Writes all that is copied, in the form that `PlaceOrder` describes.
fn write(context: &Context, parts: &[Part], parents: bool, output: File) -> Result<(), Problem> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(128 * 1024, output));
    for part in parts {
        match part {
            Part::Picked { picked, unpacks: true } => {
                write_unpacked(context.content(&picked.root)?, &archive::printable(&picked.root), &mut archive)?;
            }
            Part::Downloaded { download, unpacks: true } => {
                write_unpacked(content_of(download)?, download.name.as_deref().unwrap_or_default(), &mut archive)?;
            }
            Part::Downloaded { download, .. } => {
                let mut header = header(tar::EntryType::Regular, DOWNLOADED_MODE, download.modified);
                header.set_size(download.size);
                let path = [b"f/", download.name.as_deref().unwrap_or(UNNAMED).as_bytes()].concat();
                archive.append_data(&mut header, as_path(&path), content_of(download)?).map_err(writing)?;
            }
            Part::Picked { picked, .. } => write_picked(context, picked, parents, &mut archive)?,
            Part::Inline { name, content } => {
                let mut header = header(tar::EntryType::Regular, INLINE_MODE, 0);
                header.set_size(content.len() as u64);
                let path = [b"f/", name.as_bytes()].concat();
                archive.append_data(&mut header, as_path(&path), content.as_bytes()).map_err(writing)?;
            }
        }
    }
    archive.into_inner().and_then(|mut output| io::Write::flush(&mut output)).map_err(writing)
}

type Archive = tar::Builder<io::BufWriter<File>>;

fn write_picked(context: &Context, picked: &Picked, parents: bool, archive: &mut Archive) -> Result<(), Problem> {
    let prefix = match (parents, picked.is_folder) {
        (true, _) => [b"d/", pivoted(&picked.name)].concat(),
        (false, true) => b"d".to_vec(),
        (false, false) => {
            let name = picked.name.rsplit(|&byte| byte == b'/').next().unwrap_or(&picked.name);
            [b"f/", name].concat()
        }
    };
    for path in picked.paths.paths() {
        let relative = path.strip_prefix(picked.root.as_slice()).unwrap_or(path);
        let relative = relative.strip_prefix(b"/").unwrap_or(relative);
        let target = match (relative.is_empty(), prefix.ends_with(b"/")) {
            (true, _) => prefix.clone(),
            (false, true) => [prefix.as_slice(), relative].concat(),
            (false, false) => [prefix.as_slice(), b"/", relative].concat(),
        };
        context.append(archive, path, as_path(&target))?;
    }
    Ok(())
}

/// What `--parents` keeps of a path: all of it, or what stands behind a `/./`.
fn pivoted(path: &[u8]) -> &[u8] {
    let at = path.windows(3).position(|window| window == b"/./");
    at.map_or(path, |at| &path[at + 3..])
}

/// Writes what an archive holds, as the files of a folder.
fn write_unpacked(packed: impl Read, path: &str, archive: &mut Archive) -> Result<(), Problem> {
    let unreadable = |error: &dyn std::error::Error| {
        Problem::Unsupported(format!("the archive `{path}` cannot be unpacked: {}", in_one_line(error)))
    };
    let plain = Decompressed::new(packed, Bounds::default());
    let mut reader = archive::Reader::new(plain.map_err(|error| unreadable(&error))?, archive::Limits::default());
    while let Some(entry) = reader.next_entry().map_err(|error| unreadable(&error))? {
        let head = entry.head().clone();
        let parts = head.components().map_err(|error| unreadable(&error))?;
        if parts.is_empty() {
            continue;
        }
        let path = [b"u/", parts.join(&b'/').as_slice()].concat();
        let mut header = header(tar::EntryType::Regular, head.mode, head.mtime.seconds);
        header.set_uid(u64::from(head.uid));
        header.set_gid(u64::from(head.gid));
        header.set_size(head.size);
        match &head.kind {
            archive::Kind::File => archive.append_data(&mut header, as_path(&path), entry),
            archive::Kind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, as_path(&path), io::empty())
            }
            archive::Kind::Symlink { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                archive.append_link(&mut header, as_path(&path), as_path(target))
            }
            archive::Kind::HardLink { target } => {
                header.set_entry_type(tar::EntryType::Link);
                let target = archive::split_path(target).map_err(|error| unreadable(&error))?.join(&b'/');
                archive.append_link(&mut header, as_path(&path), as_path(&[b"u/", target.as_slice()].concat()))
            }
            archive::Kind::Fifo | archive::Kind::Device => Ok(()),
        }
        .map_err(writing)?;
    }
    Ok(())
}

/// What was downloaded, from its start; several steps may read it at a time.
fn content_of(download: &Download) -> Result<impl Read + use<>, Problem> {
    let file = download.file.try_clone().map_err(writing)?;
    let mut offset = 0;
    let read = move |buffer: &mut [u8]| {
        let count = file.read_at(buffer, offset)?;
        offset += count as u64;
        Ok(count)
    };
    Ok(Reading(read))
}

/// Reads by a function.
struct Reading<F>(F);

impl<F: FnMut(&mut [u8]) -> io::Result<usize>> Read for Reading<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.0)(buffer)
    }
}

fn header(kind: tar::EntryType, mode: u32, mtime: i64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(mtime).unwrap_or(0));
    header
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes))
}
