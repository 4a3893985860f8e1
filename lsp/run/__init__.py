"""From a composed config to a running trainer."""
