"""Operations whose second derivative torch computes too slowly or not at all, done better while a step is replayed."""
