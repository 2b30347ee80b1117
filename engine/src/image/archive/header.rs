//! One 512-byte header block: its checksum, its numbers, its names. No reading happens here.

use tar::Header;

use super::Kind;

/// Bytes of a tar block.
pub(super) const BLOCK_BYTES: usize = 512;

/// A header block whose checksum was right.
pub(super) struct Block(Header);

/// Takes a block apart; `None` is a block of zeros, half of the end mark. The error is a phrase that says what is
/// wrong with it.
pub(super) fn parse(bytes: [u8; BLOCK_BYTES]) -> Result<Option<Block>, &'static str> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    let mut header = Header::new_old();
    *header.as_mut_bytes() = bytes;
    // Some old programs added the bytes up as signed numbers.
    let sums = [checksum(&bytes, i64::from), checksum(&bytes, |byte| i64::from(byte.cast_signed()))];
    match number(&header.as_old().cksum) {
        Some(stated) if sums.contains(&stated) => Ok(Some(Block(header))),
        _ => Err("the checksum of its header is wrong, or this is no tar archive"),
    }
}

/// Where the checksum field stands; it is added up as if it were spaces.
const CHECKSUM_FIELD: std::ops::Range<usize> = 148..156;

fn checksum(bytes: &[u8; BLOCK_BYTES], value: impl Fn(u8) -> i64) -> i64 {
    let of_field = |position: usize, byte: u8| if CHECKSUM_FIELD.contains(&position) { b' ' } else { byte };
    bytes.iter().enumerate().map(|(position, &byte)| value(of_field(position, byte))).sum()
}

impl Block {
    /// The byte that says what kind of entry this is.
    pub(super) fn type_flag(&self) -> u8 {
        self.0.as_old().linkflag[0]
    }

    /// Bytes that follow this header, without padding.
    pub(super) fn size(&self) -> Result<u64, &'static str> {
        unsigned(&self.0.as_old().size).ok_or("its size is no number")
    }

    /// Permission bits with setuid, setgid and sticky.
    pub(super) fn mode(&self) -> Result<u32, &'static str> {
        let mode = unsigned(&self.0.as_old().mode).ok_or("its mode is no number")?;
        Ok((mode & 0o7777) as u32)
    }

    pub(super) fn uid(&self) -> Result<u64, &'static str> {
        unsigned(&self.0.as_old().uid).ok_or("its owner is no number")
    }

    pub(super) fn gid(&self) -> Result<u64, &'static str> {
        unsigned(&self.0.as_old().gid).ok_or("its group is no number")
    }

    /// Seconds since 1970, possibly before.
    pub(super) fn mtime_seconds(&self) -> Result<i64, &'static str> {
        number(&self.0.as_old().mtime).ok_or("its time is no number")
    }

    /// The name field with the prefix of the newer formats.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0.as_old().name);
        let prefix = match self.0.as_ustar() {
            // Schily's variant uses the end of the field for times.
            Some(ustar) if self.0.as_bytes().ends_with(b"tar\0") => until_nul(&ustar.prefix[..131]),
            Some(ustar) => until_nul(&ustar.prefix),
            None => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.0.as_old().linkname).to_vec()
    }

    /// What kind of entry this is; the names of links are taken from the header.
    pub(super) fn kind(&self) -> Result<Kind, &'static str> {
        let target = self.link();
        Ok(match self.type_flag() {
            b'0' | b'7' | b'S' => Kind::File,
            // Before there were types, a folder was a file with a slash at its end.
            0 if self.path().ends_with(b"/") => Kind::Directory,
            0 => Kind::File,
            b'1' => Kind::HardLink { target },
            b'2' => Kind::Symlink { target },
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err("its type is not one that an image can hold"),
        })
    }

    /// The sparse map of the old GNU format, with the size of the whole file; `None` for other formats.
    pub(super) fn gnu_sparse(&self) -> Option<GnuSparse> {
        let gnu = self.0.as_gnu()?;
        let fields = gnu.sparse.iter().flat_map(|extent| [extent.offset, extent.numbytes]).collect();
        Some(GnuSparse { fields, continues: gnu.isextended[0] == 1, size: gnu.realsize })
    }
}

/// The undecoded sparse fields of an old GNU header.
pub(super) struct GnuSparse {
    /// Offset and length, alternating.
    pub(super) fields: Vec<[u8; 12]>,
    /// Whether a block with more of them follows.
    pub(super) continues: bool,
    /// The size of the whole file.
    pub(super) size: [u8; 12],
}

/// The bytes of a field before its first NUL.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or(&[])
}

/// A number that cannot be negative.
pub(super) fn unsigned(field: &[u8]) -> Option<u64> {
    number(field).and_then(|number| u64::try_from(number).ok())
}

/// A header number: octal text, or binary in base 256 when the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_padding(byte)).unwrap_or(field.len());
    let digits = field[start..].split(is_padding).next().unwrap_or(&[]);
    digits.iter().try_fold(0_i64, |number, &digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, most significant byte first; the first bit is the mark, the second the sign.
fn base_256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let head = i64::from(((first & 0x7f) << 1).cast_signed() >> 1);
    rest.iter().try_fold(head, |number, &byte| number.checked_mul(256)?.checked_add(i64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"00000000019\0"), None);
        assert_eq!(number(b"77777777777"), Some(0o77_777_777_777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0x2d, 0xc6, 0xc0]), Some(3_000_000));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xfe]), Some(-2));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Some(i64::MAX));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(unsigned(&[0xff; 12]), None);
    }
}
