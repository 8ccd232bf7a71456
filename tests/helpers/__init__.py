"""What tests share: builders, servers, data. No test module is imported by another."""
