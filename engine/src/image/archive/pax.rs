//! PAX extended headers: records of `LENGTH KEY=VALUE\n`, taken apart by their length, since a value may hold any
//! byte, a newline or a NUL among them. And what the known keys mean.

use super::sparse::Extent;
use super::{Timestamp, Xattr};

/// Prefix of the keys that carry extended attributes.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
/// Most extended attributes of one entry.
const XATTRS_MAX: usize = 1024;

/// What the records of one header say. An absent field was not named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: Sparse,
}

/// The records with which GNU tar describes a file with holes; three versions of them exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    /// Version 1.0 when `(1, 0)`: the map stands in front of the data.
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// The size with holes.
    pub(super) size: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// The numbers of versions 0.0 and 0.1, offset and length alternating.
    pub(super) map: Vec<u64>,
}

impl Records {
    /// Takes the content of an `x` or `g` header apart. The error says what is wrong with it.
    pub(super) fn parse(data: &[u8]) -> Result<Records, String> {
        let mut records = Records::default();
        let mut rest = data;
        while !rest.is_empty() {
            let record = first_record(rest)?;
            records.take(record.key, record.value)?;
            rest = record.rest;
        }
        Ok(records)
    }

    /// Applies a global header. Only what cannot shift the reading of the archive is taken; programs disagree on
    /// the rest, and an archive that two programs read differently is refused.
    pub(super) fn merge_global(&mut self, global: Records) -> Result<(), String> {
        if global.path.is_some() || global.link.is_some() || global.size.is_some() || global.sparse != Sparse::default()
        {
            return Err("a global header sets a name, a size or a sparse map".into());
        }
        self.uid = global.uid.or(self.uid);
        self.gid = global.gid.or(self.gid);
        self.mtime = global.mtime.or(self.mtime);
        for xattr in global.xattrs {
            self.set_xattr(xattr)?;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        // An empty value takes back what was said before.
        let given = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = name(key, given)?,
            b"linkpath" => self.link = name(key, given)?,
            b"size" => self.size = integer(key, given)?,
            b"uid" => self.uid = integer(key, given)?,
            b"gid" => self.gid = integer(key, given)?,
            b"mtime" => self.mtime = time(key, given)?,
            b"GNU.sparse.major" => self.sparse.major = integer(key, given)?,
            b"GNU.sparse.minor" => self.sparse.minor = integer(key, given)?,
            b"GNU.sparse.name" => self.sparse.name = name(key, given)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = integer(key, given)?,
            b"GNU.sparse.map" => self.sparse.map = numbers(value)?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.push_sparse_number(key, value)?,
            _ => match key.strip_prefix(XATTR_PREFIX) {
                Some(b"") => return Err("an extended attribute has no name".into()),
                Some(attribute) => self.set_xattr(Xattr { name: attribute.to_vec(), value: value.to_vec() })?,
                // Times of access, names of owners, comments: nothing that an image keeps.
                None => {}
            },
        }
        Ok(())
    }

    fn push_sparse_number(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let is_offset = key == b"GNU.sparse.offset";
        if is_offset != self.sparse.map.len().is_multiple_of(2) {
            return Err("its sparse map does not alternate between offset and length".into());
        }
        self.sparse.map.push(decimal(value).ok_or_else(|| not_a_number(key, value))?);
        Ok(())
    }

    fn set_xattr(&mut self, xattr: Xattr) -> Result<(), String> {
        if xattr.name.contains(&0) {
            return Err("the name of an extended attribute contains a NUL byte".into());
        }
        self.xattrs.retain(|other| other.name != xattr.name);
        if self.xattrs.len() == XATTRS_MAX {
            return Err(format!("it has more than {XATTRS_MAX} extended attributes"));
        }
        self.xattrs.push(xattr);
        Ok(())
    }
}

impl Sparse {
    /// The extents of versions 0.0 and 0.1.
    pub(super) fn extents(&self) -> Result<Vec<Extent>, &'static str> {
        if !self.map.len().is_multiple_of(2) {
            return Err("its sparse map ends in the middle");
        }
        Ok(self.map.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect())
    }
}

/// One record, and what follows it.
struct Record<'data> {
    key: &'data [u8],
    value: &'data [u8],
    rest: &'data [u8],
}

fn first_record(data: &[u8]) -> Result<Record<'_>, String> {
    const LENGTH_DIGITS_MAX: usize = 8;
    let malformed = || "a record of its extended header is malformed".to_owned();
    let space = data.iter().take(LENGTH_DIGITS_MAX + 1).position(|&byte| byte == b' ').ok_or_else(malformed)?;
    let length = decimal(&data[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(malformed)?;
    if length > data.len() {
        return Err("a record of its extended header claims to be longer than the header".into());
    }
    // At least the space, one byte of key, the equals sign and the newline.
    if length < space + 4 {
        return Err(malformed());
    }
    let (record, rest) = data.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n").ok_or_else(malformed)?;
    let equals = body.iter().position(|&byte| byte == b'=').filter(|&equals| equals > 0).ok_or_else(malformed)?;
    Ok(Record { key: &body[..equals], value: &body[equals + 1..], rest })
}

fn name(key: &[u8], value: Option<&[u8]>) -> Result<Option<Vec<u8>>, String> {
    if value.is_some_and(|value| value.contains(&0)) {
        return Err(format!("`{}` contains a NUL byte", String::from_utf8_lossy(key)));
    }
    Ok(value.map(<[u8]>::to_vec))
}

fn integer(key: &[u8], value: Option<&[u8]>) -> Result<Option<u64>, String> {
    value.map(|value| decimal(value).ok_or_else(|| not_a_number(key, value))).transpose()
}

fn not_a_number(key: &[u8], value: &[u8]) -> String {
    let shown = &value[..value.len().min(32)];
    format!("`{}` is no number: `{}`", String::from_utf8_lossy(key), shown.escape_ascii())
}

fn numbers(value: &[u8]) -> Result<Vec<u64>, String> {
    let parts = value.split(|&byte| byte == b',');
    parts.map(|part| decimal(part).ok_or_else(|| not_a_number(b"GNU.sparse.map", part))).collect()
}

/// A decimal number of digits only that fits in 63 bits.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let number = text.iter().try_fold(0_u64, |number, &digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })?;
    i64::try_from(number).is_ok().then_some(number)
}

/// Seconds since 1970 with an optional fraction and an optional minus sign.
fn time(key: &[u8], value: Option<&[u8]>) -> Result<Option<Timestamp>, String> {
    value.map(|value| timestamp(value).ok_or_else(|| not_a_number(key, value))).transpose()
}

fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let nanos = parts.next().map_or(Some(0), nanoseconds)?;
    Some(match (is_negative, nanos) {
        (false, nanos) => Timestamp { seconds, nanos },
        (true, 0) => Timestamp { seconds: -seconds, nanos: 0 },
        (true, nanos) => Timestamp { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// The first nine digits of a fraction.
fn nanoseconds(fraction: &[u8]) -> Option<u32> {
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    Some(digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len() + 1;
        while length != body.len() + length.to_string().len() {
            length = body.len() + length.to_string().len();
        }
        [length.to_string().as_bytes(), &body].concat()
    }

    #[test]
    fn a_value_may_hold_newlines_and_nul_bytes() {
        let capability = b"\x01\n\0=\n12 uid=7\n";
        let data = [record("SCHILY.xattr.security.capability", capability), record("uid", b"3000000")].concat();
        let records = Records::parse(&data).unwrap();
        assert_eq!(records.xattrs, [Xattr { name: b"security.capability".to_vec(), value: capability.to_vec() }]);
        assert_eq!(records.uid, Some(3_000_000));
    }

    #[test]
    fn times_have_fractions_and_may_be_before_1970() {
        let check =
            |text: &str, seconds, nanos| assert_eq!(timestamp(text.as_bytes()), Some(Timestamp { seconds, nanos }));
        check("1350244992.023960108", 1_350_244_992, 23_960_108);
        check("5", 5, 0);
        check("5.", 5, 0);
        check("-1.5", -2, 500_000_000);
        check("-1", -1, 0);
        check("0.9999999999", 0, 999_999_999);
        assert_eq!(timestamp(b"1.x"), None);
        assert_eq!(timestamp(b"--1"), None);
        assert_eq!(timestamp(b""), None);
    }

    #[test]
    fn lies_about_the_length_are_errors() {
        for data in [
            "99999999999 path=x\n",
            "30 path=x\n",
            "5 a=b",
            "6 a=bc",
            "4 =x\n",
            "0 a=b\n",
            "-1 a=b\n",
            "x",
            "3 \n",
            " a=b\n",
        ] {
            assert!(Records::parse(data.as_bytes()).is_err(), "{data:?}");
        }
        assert!(Records::parse(&record("path", b"a\0b")).is_err());
        assert!(Records::parse(&record("size", b"-1")).is_err());
        assert!(Records::parse(&record("size", b"9223372036854775808")).is_err());
        assert!(Records::parse(&record("size", b"0x10")).is_err());
    }

    #[test]
    fn the_last_record_counts_and_an_empty_one_takes_back() {
        let data =
            [record("path", b"a"), record("path", b"b"), record("linkpath", b"c"), record("linkpath", b"")].concat();
        let records = Records::parse(&data).unwrap();
        assert_eq!((records.path, records.link), (Some(b"b".to_vec()), None));
    }

    #[test]
    fn a_global_header_cannot_shift_the_reading() {
        let mut globals = Records::default();
        globals.merge_global(Records::parse(&record("mtime", b"7")).unwrap()).unwrap();
        assert_eq!(globals.mtime, Some(Timestamp { seconds: 7, nanos: 0 }));
        for (key, value) in [("size", "5"), ("path", "x"), ("linkpath", "x"), ("GNU.sparse.map", "0,1")] {
            let global = Records::parse(&record(key, value.as_bytes())).unwrap();
            assert!(Records::default().merge_global(global).is_err(), "{key}");
        }
    }
}
