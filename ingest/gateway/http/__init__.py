"""What every request goes through, and what all APIs share."""
