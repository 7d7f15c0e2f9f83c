//! Clusters, endpoints, load balancing, outlier detection, DNS, connection pools.
