//! A tar reader for hostile archives: plain synchronous Rust over any `Read`, no seeking, every size bounded before
//! memory is taken for it. It knows ustar, GNU and PAX, long names and holes. It writes nothing: where an entry goes
//! is its caller's affair, and `Head::components` is the only way to a path that is fit for that.

use std::fmt;
use std::io::{self, BufReader, Read};

use header::{BLOCK_BYTES, Block};
pub use sparse::Extent;

mod header;
mod pax;
mod sparse;

/// Longest path and longest link target, in bytes: what one system call takes.
pub const PATH_BYTES_MAX: usize = 4095;
/// Longest single name in a path, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Most names in a path.
pub const DEPTH_MAX: usize = 512;
/// Longest GNU long name that is read at all, in bytes.
const GNU_NAME_BYTES_MAX: u64 = 64 * 1024;
/// Longest PAX header, in bytes.
const PAX_BYTES_MAX: u64 = 1024 * 1024;
/// Most extension headers in front of one entry.
const EXTENSIONS_MAX: usize = 16;
/// Bytes asked of the input at a time.
const BUFFER_BYTES: usize = 128 * 1024;

/// How much an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries.
    pub entries_max: u64,
    /// Most bytes, headers and the holes of files included.
    pub bytes_max: u64,
}

impl Default for Limits {
    /// Two million entries, 16 GiB.
    fn default() -> Limits {
        Limits { entries_max: 2_000_000, bytes_max: 16 << 30 }
    }
}

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its content is the entry's.
    File,
    /// A folder.
    Directory,
    /// A symbolic link, verbatim.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// Another name for a file that came before.
    HardLink {
        /// The name of that file in the archive; `split_path` takes it apart.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
}

/// A time of the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds after them.
    pub nanos: u32,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Its full name, as in `user.mime_type`.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// All that an entry says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its name as written; see `components`.
    pub path: Vec<u8>,
    /// What it makes.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was changed last.
    pub mtime: Timestamp,
    /// Bytes of its content, holes included; 0 for all but files.
    pub size: u64,
    /// Its extended attributes.
    pub xattrs: Vec<Xattr>,
}

impl Head {
    /// The names that lead to the entry from the root of the archive; empty for the root itself.
    ///
    /// # Errors
    /// A path that holds `..`, a NUL byte or more than can be handled; the error says which.
    pub fn components(&self) -> Result<Vec<&[u8]>, PathError> {
        split_path(&self.path)
    }
}

/// Why a path of an archive is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path `{path}` {problem}")]
pub struct PathError {
    /// The path, made printable and shortened.
    pub path: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Takes a path of an archive apart. A leading slash, `.` and empty parts mean nothing; `..` is refused.
///
/// # Errors
/// A path that holds `..`, a NUL byte or more than can be handled.
pub fn split_path(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    let refuse = |problem| Err(PathError { path: printable(path), problem });
    if path.len() > PATH_BYTES_MAX {
        return refuse("is longer than 4095 bytes");
    }
    if path.contains(&0) {
        return refuse("contains a NUL byte");
    }
    let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return refuse("contains `..`");
    }
    if parts.iter().any(|part| part.len() > NAME_BYTES_MAX) {
        return refuse("contains a name of more than 255 bytes");
    }
    if parts.len() > DEPTH_MAX {
        return refuse("is more than 512 names deep");
    }
    Ok(parts)
}

/// A path for messages: no control bytes, no invalid text, not endless.
pub(crate) fn printable(path: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 200;
    match path.get(..SHOWN_BYTES_MAX) {
        Some(start) => format!("{}…", String::from_utf8_lossy(start).escape_debug()),
        None => String::from_utf8_lossy(path).escape_debug().to_string(),
    }
}

/// Where in an archive something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the entry, from 1.
    pub entry: u64,
    /// Its path made printable, as far as it is known.
    pub path: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(formatter, "entry {} (`{path}`)", self.entry),
            None => write!(formatter, "entry {}", self.entry),
        }
    }
}

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The input failed.
    #[error("could not read {place} of the archive")]
    Read {
        /// Where.
        place: Place,
        /// Why; a `compression::Refused` may be inside.
        source: io::Error,
    },
    /// The input ends too early.
    #[error("the archive ends in the middle of {place}\nhint: the file was cut off; make or copy it again")]
    Truncated {
        /// Where.
        place: Place,
    },
    /// The bytes are not what they should be.
    #[error("{place} of the archive is malformed: {problem}")]
    Malformed {
        /// Where.
        place: Place,
        /// What is wrong.
        problem: String,
    },
    /// A bound was passed.
    #[error("{place} of the archive passes the limit of {bound} {what}")]
    Limit {
        /// Where.
        place: Place,
        /// The bound.
        bound: u64,
        /// What is bounded.
        what: &'static str,
    },
}

impl From<ArchiveError> for io::Error {
    fn from(error: ArchiveError) -> io::Error {
        let kind = match &error {
            ArchiveError::Read { source, .. } => source.kind(),
            ArchiveError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            ArchiveError::Malformed { .. } | ArchiveError::Limit { .. } => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// Reads a tar archive from front to back.
pub struct Reader<R> {
    input: BufReader<R>,
    limits: Limits,
    /// Bytes read, and bytes that holes stand for.
    bytes: u64,
    place: Place,
    globals: pax::Records,
    body: Body,
    is_at_end: bool,
}

/// What is left of the current entry's content.
#[derive(Default)]
struct Body {
    /// Bytes of the whole content, holes included.
    size: u64,
    /// Bytes that were given to the caller or passed over.
    position: u64,
    /// The stored run that comes next or is being read; `length` is what is left of it.
    current: Extent,
    /// The runs after it.
    rest: std::vec::IntoIter<Extent>,
    /// Stored bytes that were not read yet.
    stored: u64,
    /// Bytes from the end of the content to the next block.
    padding: u64,
}

/// An entry whose content can be read until the next one is asked for.
pub struct Entry<'reader, R> {
    head: Head,
    reader: &'reader mut Reader<R>,
}

/// A run of content that was read into a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it belongs in the file.
    pub offset: u64,
    /// How many bytes of the buffer it fills.
    pub length: usize,
}

/// What extension headers said about the entry that follows them.
#[derive(Default)]
struct Extensions {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<pax::Records>,
    count: usize,
}

impl<R: Read> Reader<R> {
    /// Reads from `input`, which is uncompressed (see `compression::Decompressed`); buffers for itself.
    pub fn new(input: R, limits: Limits) -> Reader<R> {
        Reader {
            input: BufReader::with_capacity(BUFFER_BYTES, input),
            limits,
            bytes: 0,
            place: Place { entry: 0, path: None },
            globals: pax::Records::default(),
            body: Body::default(),
            is_at_end: false,
        }
    }

    /// The next entry, or `None` after the last. What was not read of the one before is passed over.
    ///
    /// # Errors
    /// An input that fails, ends early, is no tar or passes a limit; the error names the entry. The reader is of no
    /// more use after an error.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_, R>>, ArchiveError> {
        self.skip_body()?;
        self.place = Place { entry: self.place.entry + 1, path: None };
        let mut extensions = Extensions::default();
        while let Some(block) = self.read_header()? {
            match block.type_flag() {
                b'L' | b'K' | b'x' | b'g' => self.read_extension(&block, &mut extensions)?,
                _ => {
                    let head = self.begin_entry(&block, extensions)?;
                    return Ok(Some(Entry { head, reader: self }));
                }
            }
        }
        if extensions.name_an_entry() {
            return Err(ArchiveError::Truncated { place: self.place.clone() });
        }
        self.place.entry -= 1;
        Ok(None)
    }

    /// How many entries were begun.
    pub fn entries(&self) -> u64 {
        self.place.entry
    }

    /// Reads the input to its end, past the end mark of the archive; for a digest over all of it.
    ///
    /// # Errors
    /// Those of the input, and the limit on bytes.
    pub fn drain(mut self) -> Result<R, ArchiveError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        while self.read_some(&mut buffer)? > 0 {}
        Ok(self.input.into_inner())
    }

    fn read_header(&mut self) -> Result<Option<Block>, ArchiveError> {
        if self.is_at_end {
            return Ok(None);
        }
        let mut block = [0; BLOCK_BYTES];
        if !self.read_block_or_end(&mut block)? {
            return Ok(None);
        }
        let header = header::parse(block).map_err(|problem| self.malformed(problem))?;
        if header.is_none() {
            // Two blocks of zeros end an archive; what stands behind them is no part of it.
            self.is_at_end = true;
            let mut second = [0; BLOCK_BYTES];
            if self.read_block_or_end(&mut second)? && second != [0; BLOCK_BYTES] {
                return Err(self.malformed("a block of zeros stands in the middle of the archive"));
            }
        }
        Ok(header)
    }

    fn read_extension(&mut self, block: &Block, extensions: &mut Extensions) -> Result<(), ArchiveError> {
        extensions.count += 1;
        if extensions.count > EXTENSIONS_MAX {
            return Err(self.limit(EXTENSIONS_MAX as u64, "extension headers for one entry"));
        }
        match block.type_flag() {
            b'L' => extensions.long_path = Some(self.read_long_name(block)?),
            b'K' => extensions.long_link = Some(self.read_long_name(block)?),
            b'g' => {
                let records = self.read_pax(block)?;
                self.globals.merge_global(records).map_err(|problem| self.malformed(problem))?;
            }
            _ => extensions.pax = Some(self.read_pax(block)?),
        }
        Ok(())
    }

    fn read_long_name(&mut self, block: &Block) -> Result<Vec<u8>, ArchiveError> {
        let name = self.read_extension_data(block, GNU_NAME_BYTES_MAX, "bytes in a long name")?;
        Ok(header::until_nul(&name).to_vec())
    }

    fn read_pax(&mut self, block: &Block) -> Result<pax::Records, ArchiveError> {
        let data = self.read_extension_data(block, PAX_BYTES_MAX, "bytes in an extended header")?;
        pax::Records::parse(&data).map_err(|problem| self.malformed(problem))
    }

    /// The content of an extension header. Its size is its own: no PAX record changes it.
    fn read_extension_data(&mut self, block: &Block, bound: u64, what: &'static str) -> Result<Vec<u8>, ArchiveError> {
        let size = block.size().map_err(|problem| self.malformed(problem))?;
        if size > bound {
            return Err(self.limit(bound, what));
        }
        let mut data = vec![0; size as usize];
        self.read_all(&mut data)?;
        self.skip(padding(size))?;
        Ok(data)
    }

    /// Puts together what the header and its extensions say, and prepares the content for reading.
    fn begin_entry(&mut self, block: &Block, extensions: Extensions) -> Result<Head, ArchiveError> {
        let mut extended = extensions.pax.unwrap_or_default();
        let sparse = std::mem::take(&mut extended.sparse);
        let pax_path = sparse.name.clone().or_else(|| extended.path.take());
        let path = self.one_name(extensions.long_path, pax_path)?.unwrap_or_else(|| block.path());
        self.place.path = Some(printable(&path));
        if self.place.entry > self.limits.entries_max {
            return Err(self.limit(self.limits.entries_max, "entries"));
        }
        let link = self.one_name(extensions.long_link, extended.link.take())?;
        let mut head = self.head(block, path, link, extended.clone())?;
        if head.kind == Kind::File {
            let stored = extended.size.map_or_else(|| block.size(), Ok).map_err(|problem| self.malformed(problem))?;
            head.size = self.begin_body(block, stored, &sparse)?;
        }
        Ok(head)
    }

    /// The name that GNU or PAX headers give. Programs disagree on which of two counts, so two must be equal.
    fn one_name(&self, gnu: Option<Vec<u8>>, pax: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, ArchiveError> {
        match (gnu, pax) {
            (Some(gnu), Some(pax)) if gnu != pax => Err(self.malformed("it has two names")),
            (gnu, pax) => Ok(gnu.or(pax)),
        }
    }

    fn head(
        &self,
        block: &Block,
        path: Vec<u8>,
        link: Option<Vec<u8>>,
        extended: pax::Records,
    ) -> Result<Head, ArchiveError> {
        let malformed = |problem: &'static str| self.malformed(problem);
        if path.is_empty() {
            return Err(malformed("it has no name"));
        }
        let mut kind = block.kind().map_err(malformed)?;
        if let (Kind::Symlink { target } | Kind::HardLink { target }, Some(link)) = (&mut kind, link) {
            *target = link;
        }
        if let Kind::Symlink { target } | Kind::HardLink { target } = &kind
            && (target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0))
        {
            return Err(malformed("the target of its link is empty, too long or contains a NUL byte"));
        }
        let uid = extended.uid.or(self.globals.uid).map_or_else(|| block.uid(), Ok).map_err(malformed)?;
        let gid = extended.gid.or(self.globals.gid).map_or_else(|| block.gid(), Ok).map_err(malformed)?;
        let mtime = match extended.mtime.or(self.globals.mtime) {
            Some(mtime) => mtime,
            None => Timestamp { seconds: block.mtime_seconds().map_err(malformed)?, nanos: 0 },
        };
        let mut xattrs = extended.xattrs;
        for global in &self.globals.xattrs {
            if !xattrs.iter().any(|xattr| xattr.name == global.name) {
                xattrs.push(global.clone());
            }
        }
        Ok(Head {
            path,
            kind,
            mode: block.mode().map_err(malformed)?,
            uid: u32::try_from(uid).map_err(|_| malformed("its owner is out of range"))?,
            gid: u32::try_from(gid).map_err(|_| malformed("its group is out of range"))?,
            mtime,
            size: 0,
            xattrs,
        })
    }

    /// Prepares the content of a file that stores `stored` bytes; returns its size with holes.
    fn begin_body(&mut self, block: &Block, stored: u64, sparse: &pax::Sparse) -> Result<u64, ArchiveError> {
        let padding = padding(stored);
        let (extents, size, stored) = if block.type_flag() == b'S' {
            let (extents, size) = self.read_gnu_sparse(block)?;
            (Some(extents), size, stored)
        } else if (sparse.major, sparse.minor) == (Some(1), Some(0)) {
            let size = sparse.size.ok_or_else(|| self.malformed("its sparse map says no size"))?;
            let (extents, map_bytes) = self.read_pax_sparse(stored)?;
            (Some(extents), size, stored - map_bytes)
        } else if sparse.major.unwrap_or(0) != 0 {
            return Err(self.malformed("its sparse map has a version that is not known"));
        } else if let Some(size) = sparse.size {
            (Some(sparse.extents().map_err(|problem| self.malformed(problem))?), size, stored)
        } else {
            (None, stored, stored)
        };
        let mut rest = match extents {
            Some(extents) => sparse::check(extents, size, stored).map_err(|problem| self.malformed(problem))?,
            None => Vec::new(),
        }
        .into_iter();
        let current = if size == stored && rest.len() == 0 {
            Extent { offset: 0, length: stored }
        } else {
            rest.next().unwrap_or_default()
        };
        // A hole costs no input but counts like the zeros that it stands for.
        self.count(size.saturating_sub(stored))?;
        self.body = Body { size, position: 0, current, rest, stored, padding };
        Ok(size)
    }

    fn read_gnu_sparse(&mut self, block: &Block) -> Result<(Vec<Extent>, u64), ArchiveError> {
        let sparse = block.gnu_sparse().ok_or_else(|| self.malformed("its sparse map is not in the GNU format"))?;
        let size = header::unsigned(&sparse.size).ok_or_else(|| self.malformed("its size is no number"))?;
        let mut fields = sparse.fields;
        let mut continues = sparse.continues;
        while continues {
            let mut block = tar::GnuExtSparseHeader::new();
            self.read_all(block.as_mut_bytes())?;
            fields.extend(block.sparse.iter().flat_map(|extent| [extent.offset, extent.numbytes]));
            continues = block.isextended[0] == 1;
            if fields.len() > 2 * sparse::EXTENTS_MAX {
                return Err(self.limit(sparse::EXTENTS_MAX as u64, "parts in a sparse map"));
            }
        }
        let mut extents = Vec::with_capacity(fields.len() / 2);
        for pair in fields.chunks_exact(2).take_while(|pair| pair[0][0] != 0) {
            let (offset, length) = header::unsigned(&pair[0])
                .zip(header::unsigned(&pair[1]))
                .ok_or_else(|| self.malformed("its sparse map holds something that is no number"))?;
            extents.push(Extent { offset, length });
        }
        Ok((extents, size))
    }

    /// Reads the map that stands in front of the data: lines of one decimal number each, padded to a block. Returns
    /// the extents and how many bytes the map took.
    fn read_pax_sparse(&mut self, stored: u64) -> Result<(Vec<Extent>, u64), ArchiveError> {
        let mut map = NumberLines::default();
        let mut taken = 0;
        while !map.is_complete() {
            if taken + BLOCK_BYTES as u64 > stored {
                return Err(self.malformed("its sparse map is longer than what it stores"));
            }
            let mut block = [0; BLOCK_BYTES];
            self.read_all(&mut block)?;
            taken += BLOCK_BYTES as u64;
            map.feed(&block).map_err(|problem| self.malformed(problem))?;
        }
        Ok((map.extents(), taken))
    }

    fn skip_body(&mut self) -> Result<(), ArchiveError> {
        let body = std::mem::take(&mut self.body);
        self.skip(body.stored + body.padding)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), ArchiveError> {
        let mut buffer = [0; 8192];
        while count > 0 {
            let part = buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            let read = self.read_some(&mut buffer[..part])?;
            if read == 0 {
                return Err(ArchiveError::Truncated { place: self.place.clone() });
            }
            count -= read as u64;
        }
        Ok(())
    }

    /// Fills `block`, or says that the input ended exactly in front of it.
    fn read_block_or_end(&mut self, block: &mut [u8; BLOCK_BYTES]) -> Result<bool, ArchiveError> {
        let read = self.read_some(block)?;
        if read == 0 {
            return Ok(false);
        }
        self.read_all(&mut block[read..])?;
        Ok(true)
    }

    fn read_all(&mut self, mut buffer: &mut [u8]) -> Result<(), ArchiveError> {
        while !buffer.is_empty() {
            let read = self.read_some(buffer)?;
            if read == 0 {
                return Err(ArchiveError::Truncated { place: self.place.clone() });
            }
            buffer = &mut buffer[read..];
        }
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let read = loop {
            match self.input.read(buffer) {
                Ok(read) => break read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ArchiveError::Truncated { place: self.place.clone() });
                }
                Err(source) => return Err(ArchiveError::Read { place: self.place.clone(), source }),
            }
        };
        self.count(read as u64)?;
        Ok(read)
    }

    fn count(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.bytes_max {
            return Err(self.limit(self.limits.bytes_max, "bytes"));
        }
        Ok(())
    }

    fn malformed(&self, problem: impl Into<String>) -> ArchiveError {
        ArchiveError::Malformed { place: self.place.clone(), problem: problem.into() }
    }

    fn limit(&self, bound: u64, what: &'static str) -> ArchiveError {
        ArchiveError::Limit { place: self.place.clone(), bound, what }
    }
}

impl<R: Read> Entry<'_, R> {
    /// What the entry says of itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Takes what the entry says of itself out of it, for whoever reads the content too.
    pub(crate) fn take_head(&mut self) -> Head {
        let empty = Head { path: Vec::new(), xattrs: Vec::new(), kind: Kind::File, ..self.head };
        std::mem::replace(&mut self.head, empty)
    }

    /// Where the entry stands, for messages.
    pub fn place(&self) -> Place {
        self.reader.place.clone()
    }

    /// Reads the next stored bytes; `None` at the end. What no piece covers is zeros: the holes of the file.
    ///
    /// # Errors
    /// As `Reader::next_entry`.
    pub fn read_piece(&mut self, buffer: &mut [u8]) -> Result<Option<Piece>, ArchiveError> {
        let body = &mut self.reader.body;
        if body.current.length == 0 {
            match body.rest.next() {
                Some(next) => body.current = next,
                None => return Ok(None),
            }
        }
        let part = buffer.len().min(usize::try_from(body.current.length).unwrap_or(usize::MAX));
        let length = self.reader.read_some(&mut buffer[..part])?;
        if length == 0 && part > 0 {
            return Err(ArchiveError::Truncated { place: self.place() });
        }
        let body = &mut self.reader.body;
        let piece = Piece { offset: body.current.offset, length };
        body.current.offset += length as u64;
        body.current.length -= length as u64;
        body.stored -= length as u64;
        body.position = body.current.offset;
        Ok(Some(piece))
    }

    /// How many zeros come before the next stored byte, or before the end.
    fn zeros_ahead(&mut self) -> u64 {
        let body = &mut self.reader.body;
        if body.current.length == 0
            && let Some(next) = body.rest.next()
        {
            body.current = next;
        }
        let until = if body.current.length == 0 { body.size } else { body.current.offset };
        until.saturating_sub(body.position)
    }
}

/// The content with its holes filled.
impl<R: Read> Read for Entry<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let zeros = usize::try_from(self.zeros_ahead()).unwrap_or(usize::MAX).min(buffer.len());
        if zeros > 0 {
            buffer[..zeros].fill(0);
            self.reader.body.position += zeros as u64;
            return Ok(zeros);
        }
        Ok(self.read_piece(buffer)?.map_or(0, |piece| piece.length))
    }
}

impl Extensions {
    fn name_an_entry(&self) -> bool {
        self.long_path.is_some() || self.long_link.is_some() || self.pax.is_some()
    }
}

/// Bytes from the end of `size` bytes to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}

/// The map of PAX sparse version 1.0 while it is read: a count, then that many pairs, a line each.
#[derive(Default)]
struct NumberLines {
    numbers: Vec<u64>,
    line: Vec<u8>,
}

impl NumberLines {
    /// More digits than any number that fits.
    const DIGITS_MAX: usize = 20;

    fn is_complete(&self) -> bool {
        self.numbers.first().is_some_and(|&count| self.numbers.len() as u64 > count * 2)
    }

    fn feed(&mut self, block: &[u8]) -> Result<(), &'static str> {
        for &byte in block {
            if self.is_complete() {
                break;
            }
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > Self::DIGITS_MAX {
                    return Err("its sparse map holds something that is no number");
                }
                continue;
            }
            let number = pax::decimal(&self.line).ok_or("its sparse map holds something that is no number")?;
            if self.numbers.is_empty() && number > sparse::EXTENTS_MAX as u64 {
                return Err("its sparse map has too many parts");
            }
            self.numbers.push(number);
            self.line.clear();
        }
        Ok(())
    }

    fn extents(&self) -> Vec<Extent> {
        let pairs = self.numbers[1..].chunks_exact(2);
        pairs.map(|pair| Extent { offset: pair[0], length: pair[1] }).collect()
    }
}

#[cfg(test)]
mod tests;
