//! What the slots of one kind of ring mean.
//!
//! A protocol turns a slot's bytes, once copied out, into a value and back. Both are total: bytes
//! from a peer always decode, and what makes no sense in them is for whoever acts on the value to
//! find. Encoding starts from zeroes, so that nothing of ours is left between the fields
//! (advisory 216).

/// A kind of ring.
pub trait Protocol {
    /// What the frontend asks.
    type Request;
    /// What the backend answers.
    type Response;
    /// A slot's bytes: as many as the larger of the two messages has.
    type Slot: SlotBytes;
    /// A response's bytes: the beginning of a slot.
    type Answer: SlotBytes;

    /// Reads a request out of a copied slot.
    fn decode_request(slot: &Self::Slot) -> Self::Request;

    /// Writes a request into a zeroed slot.
    fn encode_request(request: &Self::Request, slot: &mut Self::Slot);

    /// Reads a response out of a copied slot.
    fn decode_response(answer: &Self::Answer) -> Self::Response;

    /// Writes a response into a zeroed slot.
    fn encode_response(response: &Self::Response, answer: &mut Self::Answer);
}

/// A byte array of a size known at compile time.
pub trait SlotBytes: AsRef<[u8]> + AsMut<[u8]> {
    /// Its size in bytes.
    const LEN: usize;
    /// All zeroes.
    const ZERO: Self;
}

impl<const N: usize> SlotBytes for [u8; N] {
    const LEN: usize = N;
    const ZERO: Self = [0; N];
}
