"""What runs the checks, whatever they are about: checks, subjects, reports, known bugs."""
