//! The lists of who may use published ports: one for each distinct content, numbered, with a count of the entries that use it.
//!
//! No storage is needed beside `ALLOWED`: a list's content is its entries, its users are the entries of `PUBLISHED`. A list that
//! was written or removed half way has no users, because they come after it and go before it.

use super::super::{ALLOWED, done, failed, gone, prefix, take};
use crate::datapath::DatapathError;
use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, lpm_trie::Key},
};
use ebpf_common::{AllowKey, FIRST_LIST, MAX_ALLOWED};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Bits of the list's number and the address, and the address.
type Content = BTreeSet<(u32, [u8; 16])>;

/// Number of no list: everybody may.
const EVERYBODY: u32 = 0;

pub(super) struct Lists {
    map: LpmTrie<MapData, AllowKey, u32>,
    lists: BTreeMap<u32, (Content, usize)>,
    numbers: HashMap<Content, u32>,
}

impl Lists {
    /// Takes the map out of a loaded object and reads what is there.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let map: LpmTrie<_, AllowKey, u32> = take(ebpf, ALLOWED)?;
        let mut lists = BTreeMap::<u32, (Content, usize)>::new();
        for item in &map {
            let (key, _) = item.map_err(|cause| failed(ALLOWED, "list entries", cause))?;
            let AllowKey { list, address } = key.data();
            let list = lists.entry(u32::from_be_bytes(list)).or_default();
            list.0.insert((key.prefix_len(), address));
        }
        let numbers = lists.range(FIRST_LIST..).map(|(number, list)| (list.0.clone(), *number)).collect();
        Ok(Self { map, lists, numbers })
    }

    /// Removes the lists of mappings that nothing refers to.
    pub(super) fn remove_unused(&mut self) -> Result<(), DatapathError> {
        let unused: Vec<_> = self
            .lists
            .range(FIRST_LIST..)
            .filter(|(_, list)| list.1 == 0)
            .map(|(number, _)| *number)
            .collect();
        unused.into_iter().try_for_each(|number| self.close(number))
    }

    /// The number of a list with this content, if there is one.
    pub(super) fn number_of(&self, networks: &[IpNetwork]) -> Option<u32> {
        if networks.is_empty() { Some(EVERYBODY) } else { self.numbers.get(&content(networks)).copied() }
    }

    /// The number of the list with this content, written if it is new. [`Self::close`] it when its users are known.
    pub(super) fn open(&mut self, networks: &[IpNetwork]) -> Result<u32, DatapathError> {
        if let Some(number) = self.number_of(networks) {
            return Ok(number);
        }
        let number = self.free_number();
        let content = content(networks);
        let written = self.write(number, &content);
        self.lists.insert(number, (content.clone(), 0));
        self.numbers.insert(content, number);
        if let Err(error) = written {
            self.close(number)?;
            return Err(error);
        }
        Ok(number)
    }

    /// Removes a list of a mapping if nothing refers to it.
    pub(super) fn close(&mut self, number: u32) -> Result<(), DatapathError> {
        if self.lists.get(&number).is_none_or(|list| list.1 != 0) {
            return Ok(());
        }
        let Some((content, _)) = self.lists.remove(&number) else { return Ok(()) };
        // Another list may have the same content after a crash.
        if self.numbers.get(&content) == Some(&number) {
            self.numbers.remove(&content);
        }
        content.iter().try_for_each(|row| gone(ALLOWED, self.map.remove(&key(number, row))))
    }

    /// One more entry refers to a list.
    pub(super) fn refer(&mut self, number: u32) {
        if let Some(list) = self.lists.get_mut(&number) {
            list.1 += 1;
        }
    }

    /// One entry less refers to a list.
    pub(super) fn release(&mut self, number: u32) -> Result<(), DatapathError> {
        if let Some(list) = self.lists.get_mut(&number) {
            list.1 = list.1.saturating_sub(1);
        }
        self.close(number)
    }

    /// Makes `networks` the content of a list of the node.
    pub(super) fn set(&mut self, number: u32, networks: &[IpNetwork]) -> Result<(), DatapathError> {
        let wanted = content(networks);
        let before = self.lists.get(&number).map(|list| list.0.clone()).unwrap_or_default();
        // What fails half way is seen as there, so that the next call removes it.
        self.lists.entry(number).or_default().0.extend(&wanted);
        self.write(number, &wanted.difference(&before).copied().collect())?;
        for row in before.difference(&wanted) {
            gone(ALLOWED, self.map.remove(&key(number, row)))?;
        }
        // A use of its own, so that nobody closes it.
        self.lists.insert(number, (wanted, 1));
        Ok(())
    }

    fn write(&mut self, number: u32, content: &Content) -> Result<(), DatapathError> {
        content
            .iter()
            .try_for_each(|row| done(ALLOWED, MAX_ALLOWED, self.map.insert(&key(number, row), 1, 0)))
    }

    /// Above the highest, so that a number comes back late: a program may still hold an entry with an old one.
    fn free_number(&self) -> u32 {
        let highest = self.lists.last_key_value().map_or(0, |(number, _)| *number);
        let next = highest.max(FIRST_LIST - 1).checked_add(1);
        next.or_else(|| (FIRST_LIST..).find(|n| !self.lists.contains_key(n))).unwrap_or(FIRST_LIST)
    }
}

fn content(networks: &[IpNetwork]) -> Content {
    let rows = networks.iter().flat_map(prefix::wide);
    rows.map(|(address, bits)| (AllowKey::LIST_BITS + bits, address)).collect()
}

fn key(number: u32, &(bits, address): &(u32, [u8; 16])) -> Key<AllowKey> {
    Key::new(bits, AllowKey { list: number.to_be_bytes(), address })
}
