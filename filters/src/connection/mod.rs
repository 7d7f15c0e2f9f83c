//! Network filters that refuse connections: too many at a time, or too many per second.

mod limit;
mod rate;

pub use limit::Factory as LimitFactory;
pub use rate::Factory as RateFactory;

#[cfg(test)]
mod tests;
