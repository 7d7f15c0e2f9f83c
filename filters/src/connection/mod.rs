//! Network filters that refuse connections: too many at a time or per second, or those that a service does not want.

mod call;
mod ext_authz;
mod limit;
mod rate;
mod ratelimit;

pub use ext_authz::Factory as ExtAuthzFactory;
pub use limit::Factory as LimitFactory;
pub use rate::Factory as RateFactory;
pub use ratelimit::Factory as RateLimitFactory;

#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod tests;
