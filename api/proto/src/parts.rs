//! Cutting a delta into parts that each fit a message, and putting parts together again.

use fairlead_model::ledger::{Delta, Digest};

use crate::{LEDGER_BYTES_MAX, PART_BYTES, ProtoError, field, pb};

/// The parts of a delta, at least one. The last one carries the digest.
pub fn cut(delta: &Delta) -> Vec<pb::DeltaPart> {
    let open = || pb::DeltaPart { based: delta.based, ..Default::default() };
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (open(), 0);
    let deletes = delta.delete.iter().map(|key| (key, None));
    let puts = delta.put.iter().map(|(key, value)| (key, Some(value)));
    for (key, value) in deletes.chain(puts) {
        let size = key.len() + value.map_or(0, Vec::len);
        if bytes > 0 && bytes + size > PART_BYTES {
            parts.push(std::mem::replace(&mut part, open()));
            bytes = 0;
        }
        bytes += size;
        match value {
            Some(value) => part.put.push(pb::Entry { key: key.clone(), value: value.clone() }),
            None => part.delete.push(key.clone()),
        }
    }
    part.digest = delta.digest.to_vec();
    part.last = true;
    parts.push(part);
    parts
}

/// Puts the parts of one delta together. `N` is the number that all parts carry.
#[derive(Debug)]
pub struct Assembler<N> {
    open: Option<(N, Delta)>,
    bytes: usize,
}

impl<N> Default for Assembler<N> {
    fn default() -> Self {
        Self { open: None, bytes: 0 }
    }
}

impl<N: PartialEq + Copy + std::fmt::Display> Assembler<N> {
    /// Takes a part; gives the delta when it was the last one.
    ///
    /// # Errors
    /// When parts are mixed, too large together, or the digest is not one.
    pub fn push(
        &mut self,
        number: N,
        part: Option<pb::DeltaPart>,
    ) -> Result<Option<Delta>, ProtoError> {
        let part = part.ok_or_else(|| field("Part", "delta", "absent"))?;
        let size = |e: &pb::Entry| e.key.len() + e.value.len();
        self.bytes += part.put.iter().map(size).sum::<usize>()
            + part.delete.iter().map(String::len).sum::<usize>();
        if self.bytes > LEDGER_BYTES_MAX {
            return Err(ProtoError::TooLarge);
        }
        let (open, mut delta) = self
            .open
            .take()
            .unwrap_or_else(|| (number, Delta { based: part.based, ..Delta::default() }));
        if open != number {
            return Err(ProtoError::PartsMixed {
                open: open.to_string(),
                found: number.to_string(),
            });
        }
        delta.put.extend(part.put.into_iter().map(|e| (e.key, e.value)));
        delta.delete.extend(part.delete);
        if !part.last {
            self.open = Some((open, delta));
            return Ok(None);
        }
        self.bytes = 0;
        delta.digest = digest(&part.digest)?;
        Ok(Some(delta))
    }
}

pub(crate) fn digest(bytes: &[u8]) -> Result<Digest, ProtoError> {
    bytes.try_into().map_err(|_| field("DeltaPart", "digest", "not 32 bytes"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::ledger::Ledger;

    fn ledger(entries: usize, bytes: usize) -> Ledger {
        Ledger::new((0..entries).map(|i| (format!("key/{i:05}"), vec![7; bytes])).collect())
    }

    #[test]
    fn parts_give_back_the_delta() {
        let base = ledger(3, 10);
        for next in [ledger(0, 0), ledger(3, 10), ledger(500, 4_000)] {
            let delta = next.delta_from(&base);
            let parts = cut(&delta);
            let mut assembler = Assembler::default();
            let mut got = None;
            for part in parts {
                assert!(got.is_none(), "a part after the last one");
                got = assembler.push(1, Some(part)).unwrap();
            }
            assert_eq!(base.apply(&got.unwrap()).unwrap(), next);
        }
    }

    #[test]
    fn parts_of_two_deltas_are_not_mixed() {
        let parts = cut(&ledger(500, 4_000).full());
        let mut assembler = Assembler::default();
        assembler.push(1, parts.first().cloned()).unwrap();
        let error = assembler.push(2, parts.last().cloned()).unwrap_err();
        assert!(matches!(error, ProtoError::PartsMixed { .. }), "{error}");
    }

    #[test]
    fn endless_parts_are_stopped() {
        let part = pb::DeltaPart {
            put: vec![pb::Entry { key: "k".into(), value: vec![0; 4 << 20] }],
            ..Default::default()
        };
        let mut assembler = Assembler::default();
        let stopped = (0..100).any(|_| assembler.push(1, Some(part.clone())).is_err());
        assert!(stopped);
    }
}
