"""Native models under the heads of the published systems, for fine-tuning."""
