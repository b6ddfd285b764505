"""What a user has: subject, cut-out, place, region; and the crop that a method works on."""
